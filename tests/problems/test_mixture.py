"""Several problem sets in one training: each question is asked, ended, read and graded as its own set has it."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from spo_core.config import DataParams, Params, load_params
from spo_core.errors import ConfigError
from spo_core.evaluate.suite import cells, evaluated_set, graded_as, suite_questions
from spo_core.paths import Paths
from spo_core.policy.checkpoint import make_policy, make_tokenizer, save_policy
from spo_core.problems import problem_set
from spo_core.problems.base import Question, normalized, read_split
from spo_core.problems.mixture import described, encode_questions, set_of
from spo_core.problems.prepare import prepare_splits
from spo_core.problems.templates import encode_prompt
from spo_core.system.files import read_json
from spo_core.train.identity import check_training
from spo_core.train.opening import open_session
from spo_core.train.questions import MixedOrder, QuestionOrder
from spo_core.train.steps import credit_step, rollout_step, train_step
from spo_core.tree import read_trees
from spo_core.verify import Outcome, Verdict
from spo_core.verify.verifier import Verifier
from tests.conftest import ROOT

SUMS = (
    '{problem_set: sums, validation: 4, jsonl: {train: sums.jsonl, test: sums_test.jsonl, template: "S {question}\\n", '
)
SUMS += 'stop: ["3"]}}'
WORDS = "{problem_set: words, validation: 3, jsonl: {train: words.jsonl, test: words_test.jsonl, rule: text, "
WORDS += 'template: "W {question}:", answer_form: boxed}}'
MIXED = f"data={{problem_set: both, mixture: [{{weight: 3, grader: minerva, data: {SUMS}}}, {{data: {WORDS}}}]}}"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Two sets of files, a question of which stands in both, and a random policy for their texts."""
    monkeypatch.chdir(tmp_path)
    for name, count in (("sums", 20), ("sums_test", 5), ("words", 12), ("words_test", 4)):
        rows = [{"question": f"{name} {i}", "answer": f"{i}"} for i in range(count)]
        rows += [{"question": "In both", "answer": "1"}] if not name.endswith("test") else []
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    params, paths = mixed(), Paths(tmp_path)
    prepare_splits(params, paths)
    init = params.policy.init
    tokenizer = make_tokenizer("bytes", problem_set(params.data))
    save_policy(make_policy(init, tokenizer, seed=0), tokenizer, paths.checkpoint("warmup"))
    return paths


def mixed(*overrides: str) -> Params:
    small = "{type: scratch, tokenizer: bytes, hidden_size: 16, layers: 1, heads: 1, intermediate_size: 16, "
    init = f"policy.init={small}max_positions: 192}}"
    run = ("run.threads=1", "run.iterations=3", "run.validate_every=1", "run.checkpoint_every=1", "rollout.questions=8")
    more = (
        "rollout.context_length=40",
        "rollout.first_children=null",
        "rollout.branch_factors=[2]",
        "credit.partition={type: whole}",
    )
    return load_params(ROOT, None, (MIXED, init, *run, *more, *overrides))


def test_splits_are_those_of_the_sets_and_share_no_question(project):
    problem, folder = problem_set(mixed().data), project.data("both")
    rows = {split: read_split(folder, split) for split in ("train", "validation", "test")}
    assert {s: Counter(r.question_id.partition("-")[0] for r in own) for s, own in rows.items()} == {
        "train": {"sums": 17, "words": 9}, "validation": {"sums": 4, "words": 3}, "test": {"sums": 5, "words": 4}
    }  # fmt: skip
    texts = [normalized(row.question) for own in rows.values() for row in own]
    assert len(set(texts)) == len(texts), "the question of both sets is asked in one"
    for row in rows["train"]:
        assert set_of(problem, row.question_id).name == row.question_id.partition("-")[0]
    sums, words = (described(problem)[name] for name in ("sums", "words"))
    assert (sums["weight"], sums["grader"], sums["rule"], words["rule"]) == (3.0, "minerva", "math", "text")


def test_prompts_are_those_of_each_set(project):
    tokenizer = make_tokenizer("bytes", problem_set(mixed().data))
    problem, rows = problem_set(mixed().data), read_split(project.data("both"), "train")[::-1]
    found = encode_questions(problem, tokenizer, rows)
    for row, ids in zip(rows, found, strict=True):
        own = set_of(problem, row.question_id)
        assert ids == encode_prompt(own.template, tokenizer, row.question)
        assert tokenizer.decode(ids)[0] == row.question_id[0].upper()
    for use in (lambda: problem.template, lambda: problem.prompt("x"), lambda: problem.extract("x")):
        with pytest.raises(ConfigError, match="both is a mixture"):
            use()


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 5.0), min_size=2, max_size=4), st.integers(1, 9), st.integers(1, 6))
def test_questions_come_in_the_proportion_of_weights_and_resume(weights, count, stop):
    names = [f"s{n}" for n in range(len(weights))]
    rows = {
        name: [Question(f"{name}-train-{i}", f"{name} {i}", "1") for i in range(5 + 3 * n)]
        for n, name in enumerate(names)
    }

    def made() -> MixedOrder:
        return MixedOrder({n: QuestionOrder(own, 0) for n, own in rows.items()}, dict(zip(names, weights, strict=True)))

    order, asked = made(), Counter()
    for iteration in range(1, 9):
        if iteration == stop:
            state, order = json.loads(json.dumps(order.state)), made()
            order.restore(state)
        drawn = order.draw(count, iteration)
        assert len(drawn) == count
        asked.update(row.question_id.partition("-")[0] for row in drawn)
    for name, weight in zip(names, weights, strict=True):
        assert abs(asked[name] - 8 * count * weight / sum(weights)) < len(names)
    straight = made()
    for iteration in range(1, 9):
        last = straight.draw(count, iteration)
    assert last == drawn


@settings(deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=4), st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_a_set_that_has_too_few_is_stood_in_for_by_the_others(sizes, counts):
    """Within an iteration no question comes twice, and as many come as there are."""
    orders = {
        f"s{n}": QuestionOrder([Question(f"s{n}-train-{i}", f"{n} {i}", "1") for i in range(size)], 0)
        for n, size in enumerate(sizes)
    }
    order, asked = MixedOrder(orders, dict.fromkeys(orders, 1.0)), {"none"}
    for count in counts:
        left = sum(sizes) - len(asked - {"none"})
        drawn = order.draw(count, 1, asked)
        assert len(drawn) == min(count, left)
        asked |= {row.question_id for row in drawn}
    assert sum(order.asked.values()) == len(asked - {"none"})


def test_a_training_asks_grades_and_reports_by_set(project, tmp_path, monkeypatch):
    """Weights 3 to 1 in every iteration; each completion goes to the grader of its set; sums end at their stop string;
    validation is weighed; a run that was interrupted ends at the same metrics."""
    graded: list[tuple[str, str | None]] = []

    def grade(verifier, problem, answers, grader=None):
        graded.append((problem.name, grader))
        return [Verdict(Outcome.CORRECT if len(text) % 2 else Outcome.WRONG, None) for text, _ in answers]

    monkeypatch.setattr(Verifier, "grade", grade)
    params, found = mixed(), {}
    check_training(params, project)
    for name, stops in (("a", (None,)), ("b", (1, None))):
        monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / name))
        for stop in stops:
            with open_session(params, project) as session:
                while not session.finished and session.iteration != stop:
                    number = session.iteration + 1
                    rollout_step(session, number)
                    credit_step(session, number)
                    train_step(session, number)
        rows = session.run.read_metrics()
        found[name] = [{k: v for k, v in row.items() if not k.startswith("timing/")} for row in rows]
    assert found["a"] == found["b"] and set(graded) == {("sums", "minerva"), ("words", "exact")}
    for number, row in enumerate(found["a"], start=1):
        folder = session.run.iteration(number)
        assert Counter(q["question_id"][:1] for q in read_json(folder / "questions.json")) == {"s": 6, "w": 2}
        assert (row["rollout/sums/questions"], row["rollout/words/questions"]) == (6, 2)
        rewards = 6 * row["rollout/sums/reward"] + 2 * row["rollout/words/reward"]
        assert row["rollout/reward"] == pytest.approx(rewards / 8)
        tokens = [row[f"rollout/{name}/generated_tokens"] for name in ("sums", "words")]
        assert row["rollout/generated_tokens"] == sum(tokens)
        accuracies = [row[f"eval/{name}/validation_accuracy"] for name in ("sums", "words")]
        assert row["eval/validation_accuracy"] == pytest.approx(np.dot(accuracies, [0.75, 0.25]))
        three = session.tokenizer.encode("3", add_special_tokens=False)[0]
        for tree in read_trees(folder / "trees.parquet"):
            for node in tree.nodes[1:]:
                assert three not in node.token_ids[:-1].tolist() or tree.question_id.startswith("words")


def test_an_evaluation_has_the_cells_of_all_sets(project):
    params = mixed()
    assert list(dict.fromkeys(cell.problem_set for cell in cells(params))) == ["sums", "words"]
    assert [evaluated_set(params, name).template.answer for name in ("sums", "words")] == ["hashes", "boxed"]
    assert [graded_as(params, name).grader for name in ("sums", "words", "gsm8k")] == ["minerva", "exact", "exact"]
    assert [len(suite_questions(params, project, name)) for name in ("sums", "words")] == [5, 4]
    assert {cell.problem_set for cell in cells(mixed("evaluate.problem_sets=[gsm8k]"))} == {"gsm8k"}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"problem_set": "a", "mixture": [{"data": {"problem_set": "a"}}]}, "need names of their own"),
        ({"problem_set": "m", "mixture": [{"data": {"problem_set": "a"}}] * 2}, "need names of their own"),
        ({"problem_set": "m", "train": 3, "mixture": [{"data": {"problem_set": "a"}}]}, "belongs to a set of"),
        ({"problem_set": "m", "mixture": [{"weight": 0, "data": {"problem_set": "a"}}]}, "greater than 0"),
        (
            {
                "problem_set": "m",
                "mixture": [{"data": {"problem_set": "n", "mixture": [{"data": {"problem_set": "a"}}]}}],
            },
            "one of its sets is a mixture",
        ),
        (
            {"problem_set": "m", "mixture": [{"data": {"problem_set": "a", "max_question_tokens": 9}}]},
            "max_question_tokens: one for all sets",
        ),
    ],
)
def test_mixtures_that_cannot_be_are_refused(data, says):
    with pytest.raises(ValidationError, match=says):
        DataParams.model_validate_json(json.dumps(data))


OF_A_SET = {
    "source": "folder",
    "revision": "v1",
    "template": "plain",
    "chat": {},
    "seed": 1,
    "train": 3,
    "validation": 3,
    "test": 3,
    "jsonl": {"test": "x.jsonl"},
    "arithmetic": {"steps": [2, 3]},
}


@pytest.mark.parametrize("key", sorted(DataParams.model_fields.keys() - {"problem_set", "mixture"}))
def test_nothing_that_stands_beside_a_mixture_is_ignored(key):
    """Every key of ``data``, so that one that is added is thought of here."""
    data = {"problem_set": "m", "mixture": [{"data": {"problem_set": "a"}}], "arithmetic": {"steps": [12, 14]}}
    assert len(DataParams.model_validate_json(json.dumps(data)).mixture) == 1, "defaults may be written"
    if key == "max_question_tokens":  # the mixture's own
        assert DataParams.model_validate_json(json.dumps(data | {key: 9})).max_question_tokens == 9
        return
    DataParams.model_validate_json(json.dumps({key: OF_A_SET[key]}))
    with pytest.raises(ValidationError, match=f"{key}: belongs to a set of data.mixture"):
        DataParams.model_validate_json(json.dumps(data | {key: OF_A_SET[key]}))


def test_sets_without_training_questions_and_names_of_ours_are_refused():
    with pytest.raises(ConfigError, match=r"data\.mixture: aime24 has a test split alone"):
        problem_set(
            DataParams.model_validate_json('{"problem_set": "m", "mixture": [{"data": {"problem_set": "aime24"}}]}')
        )
    with pytest.raises(ConfigError, match="gsm8k is built in"):
        problem_set(
            DataParams.model_validate_json('{"problem_set": "gsm8k", "mixture": [{"data": {"problem_set": "math"}}]}')
        )


@pytest.mark.parametrize("preset", ["chat", "mixed"])
def test_examples_of_the_page_are_read(tmp_path, preset):
    page = (ROOT / "docs" / "problem-sets.md").read_text()
    blocks = dict(re.findall(r"```yaml\n# params/presets/(\w+)\.yaml\n(.*?)```", page, re.DOTALL))
    shutil.copytree(ROOT / "params", tmp_path / "params")
    (tmp_path / "params" / "presets" / f"{preset}.yaml").write_text(blocks[preset])
    data = load_params(tmp_path, preset).data
    problem = problem_set(data)
    if preset == "chat":
        assert data.chat.user.endswith("\\boxed{}.") and data.chat.thinking is False and problem.template.chat
    else:
        assert [part.name for part in problem.parts] == ["gsm8k", "math"] and problem.parts[
            0
        ].template.answer == "boxed"
