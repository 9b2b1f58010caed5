"""Published problem sets, from files in the common formats and from the hub."""

import json

import datasets
import numpy as np
import pytest

from spo_core.config import DataParams
from spo_core.errors import ConfigError, DataError
from spo_core.problems import PROBLEM_SETS, problem_set
from spo_core.problems.base import Question
from spo_core.problems.text_set import TextSource
from tests.conftest import SHARED_DATA

EVALUATION_SETS = ("aime24", "college_math", "olympiad_bench")
GSM8K_ROWS = [
    {"question": f"How many is {i} and {i}? ", "answer": f"{i}+{i}=<<{i}+{i}={2 * i}>>{2 * i}\n#### {2 * i}"}
    for i in range(30)
]
MATH_ROWS = [
    {
        "problem": f"Find $\\frac{{{i}}}{{7}}$.",
        "solution": f"It is \\boxed{{0}}, no, $\\boxed{{\\frac{{{i}}}{{7}}}}$.",
        "answer": f"\\frac{{{i}}}{{7}}",
        "subject": "Algebra",
        "level": 2,
        "unique_id": f"train/algebra/{i}.json",
    }
    for i in range(30)
]


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def build(name, source, **params):
    return problem_set(DataParams(problem_set=name, source=str(source), **params)).build()


def sizes(splits):
    return {split: len(rows) for split, rows in splits.items()}


@pytest.fixture
def gsm8k_source(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", GSM8K_ROWS[:20])
    write_jsonl(tmp_path / "test.jsonl", GSM8K_ROWS[20:])
    return tmp_path


def test_gsm8k_reads_its_own_files(gsm8k_source):
    splits = build("gsm8k", gsm8k_source, validation=5)
    assert sizes(splits) == {"train": 15, "validation": 5, "test": 10} and not any(splits.dropped.values())
    assert splits["test"][3] == Question("gsm8k-test-00003", "How many is 23 and 23? ", "46", "23+23=46\n#### 46")
    held_out = sorted(np.random.default_rng([0, 1]).permutation(20)[:5])
    assert [row.question_id for row in splits["validation"]] == [f"gsm8k-train-{i:05d}" for i in held_out]


def test_math_takes_the_answer_or_the_last_box(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{k: v for k, v in row.items() if k != "answer"} for row in MATH_ROWS[:20]])
    (tmp_path / "test.json").write_text(json.dumps(MATH_ROWS[20:]))
    splits = build("math", tmp_path, validation=5)
    assert sizes(splits) == {"train": 15, "validation": 5, "test": 10}
    for row in [*splits["train"], *splits["validation"]]:
        assert row.answer == f"\\frac{{{int(row.question_id[-2:])}}}{{7}}"
    assert splits["test"][0].answer == "\\frac{20}{7}" and splits["test"][0].question_id == "math-test-00000"


@pytest.mark.parametrize("name", ["train.jsonl", "math_splits/train.jsonl", "math/train.jsonl", "train.json"])
def test_usual_spellings_of_file_names_are_found(tmp_path, name):
    write_jsonl(tmp_path / name, MATH_ROWS[:20])
    write_jsonl(tmp_path / name.replace("train", "test"), MATH_ROWS[20:])
    assert sizes(build("math", tmp_path, validation=5)) == {"train": 15, "validation": 5, "test": 10}


def test_math_without_train_will_do_for_evaluation_and_says_so(tmp_path, caplog):
    write_jsonl(tmp_path / "test.jsonl", MATH_ROWS)
    assert sizes(build("math", tmp_path)) == {"test": 30}
    assert "holds no train split of math: it will do for evaluation only" in caplog.text
    problem_set(DataParams(problem_set="math", source=str(tmp_path))).check_source()


@pytest.mark.parametrize("name", EVALUATION_SETS)
def test_evaluation_sets_have_a_test_split_only(tmp_path, name):
    write_jsonl(tmp_path / "test.jsonl", [{"question": "1+1?", "answer": 2}, {"question": "1+2?", "answer": "3"}])
    problem = problem_set(DataParams(problem_set=name, source=str(tmp_path)))
    problem.check_source()
    splits = problem.build()
    assert problem.evaluation_only and sizes(splits) == {"test": 2}
    assert [row.answer for row in splits["test"]] == ["2", "3"]


def test_olympiad_bench_joins_several_answers(tmp_path):
    row = {
        "question": "Solve $x^2=4$.",
        "solution": ["By trial.", "By force."],
        "final_answer": ["$2$", "$-2$"],
        "is_multiple_answer": True,
    }
    write_jsonl(tmp_path / "OE_TO_maths_en_COMP.jsonl", [row, row | {"final_answer": ["3"], "solution": None}])
    first, second = build("olympiad_bench", tmp_path)["test"]
    assert (first.answer, first.solution) == (r"$2$ \text{ or } $-2$", "By trial.")
    assert (second.answer, second.solution) == ("3", "")


def test_problem_sets_bear_their_names_and_prompts():
    prompts = {"arithmetic": "arithmetic", "gsm8k": "math_task", "point24": "r1_point24"}
    for name in PROBLEM_SETS:
        problem = problem_set(DataParams(problem_set=name))
        assert problem.name == name and problem.template.name == prompts.get(name, "r1_boxed")
        assert problem.rule == ("game24" if name == "point24" else "math")
        assert problem.evaluation_only == (name in EVALUATION_SETS)
        assert problem.prompt("Q") == problem.template.fill("Q")
        assert (problem.alphabet() is None) == (name != "arithmetic")


def test_an_unknown_problem_set_is_refused_with_the_known_ones():
    with pytest.raises(
        ConfigError, match="aime24, arithmetic, college_math, gsm8k, math, olympiad_bench, point24, and"
    ):
        problem_set(DataParams(problem_set="gsm9k"))


@pytest.mark.parametrize(
    ("template", "solution", "expected"),
    [
        ("math_task", "1+1=2\n#### 2", "\n1+1=2\n#### 2\n"),
        ("math_task", "So \\boxed{2}.", "\nSo \\boxed{2}.\n#### 2\n"),
        ("math_task", "", "\n#### 2\n"),
        ("r1_boxed", "1+1=2\n#### 2", "1+1=2\nThe answer is $\\boxed{2}$.\n"),
        ("r1_boxed", "#### 2", "The answer is $\\boxed{2}$.\n"),
        ("r1_boxed", "So \\boxed{2}.", "So \\boxed{2}.\n"),
    ],
)
def test_demonstrations_state_the_answer_as_the_template_asks(template, solution, expected):
    problem = problem_set(DataParams(problem_set="gsm8k", template=template))
    shown = problem.demonstration(Question("q", "1+1?", "2", solution), np.random.default_rng(0))
    assert shown == expected and problem.extract(shown) == "2"


# --- malformed and missing files ---


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_file_is_named(gsm8k_source, split):
    (gsm8k_source / f"{split}.jsonl").unlink()
    problem = problem_set(DataParams(problem_set="gsm8k", source=str(gsm8k_source)))
    for ask in (problem.check_source, problem.build):
        with pytest.raises(DataError, match=rf"{split}\.jsonl: no such file; data\.source must name the folder"):
            ask()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "?", "answer": "no marker"}', r"test\.jsonl:11: not a row of gsm8k: no answer after ####"),
        ('{"problem": "?"}', r"test\.jsonl:11: not a row of gsm8k: no text in field answer; its fields are problem"),
        ('{"question": "", "answer": "#### 1"}', r"test\.jsonl:11: not a row of gsm8k: no text in field question"),
        ('{"question": null, "answer": "#### 1"}', r"test\.jsonl:11: not a row of gsm8k: no text in field question"),
        ("[1]", r"test\.jsonl:11: not a row of gsm8k: not a JSON object"),
        ("{", r"test\.jsonl:11: not JSON"),
    ],
)
def test_a_malformed_row_is_named(gsm8k_source, line, message):
    with (gsm8k_source / "test.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=message):
        build("gsm8k", gsm8k_source, validation=5)


def test_a_malformed_file_is_named(gsm8k_source):
    (gsm8k_source / "test.jsonl").write_text("[{]")
    with pytest.raises(DataError, match=r"test\.jsonl: not a JSON list"):
        build("gsm8k", gsm8k_source)
    (gsm8k_source / "test.jsonl").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"test\.jsonl: not UTF-8"):
        build("gsm8k", gsm8k_source)
    (gsm8k_source / "test.jsonl").write_text("\n")
    with pytest.raises(DataError, match="gsm8k: its test split holds no question"):
        build("gsm8k", gsm8k_source)


def test_empty_lines_and_a_byte_order_mark_are_no_rows(gsm8k_source):
    text = (gsm8k_source / "test.jsonl").read_text()
    (gsm8k_source / "test.jsonl").write_text("\ufeff" + text.replace("\n", "\n\n"))
    assert len(build("gsm8k", gsm8k_source, validation=5)["test"]) == 10


# --- the hub ---

HUB = {
    "gsm8k": ("openai/gsm8k", "main", {"train": GSM8K_ROWS[:20], "test": GSM8K_ROWS[20:]}),
    "math": ("nlile/hendrycks-MATH-benchmark", None, {"train": MATH_ROWS[:20], "test": MATH_ROWS[20:]}),
    "aime24": (
        "HuggingFaceH4/aime_2024",
        None,
        {"train": [{"id": 60 + i, "problem": f"P{i}", "solution": "S", "answer": f"{i:03}"} for i in range(10)]},
    ),
    "college_math": (
        "qq8933/College_Math_Test",
        None,
        {"test": [{"question_number": f"{i}", "question": f"Q{i}", "answer": f"${i}$"} for i in range(10)]},
    ),
    "olympiad_bench": (
        "Hothan/OlympiadBench",
        "OE_TO_maths_en_COMP",
        {"train": [{"question": f"Q{i}", "solution": ["S"], "final_answer": [f"{i}"]} for i in range(10)]},
    ),
}


@pytest.mark.parametrize("name", HUB)
def test_rows_come_from_the_hub_without_a_source(name, monkeypatch, tmp_path):
    path, config, rows = HUB[name]

    def load_dataset(given_path, given_config, *, split, revision):
        assert (given_path, given_config, revision) == (path, config, "abc")
        return datasets.Dataset.from_list(rows[split])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    problem = problem_set(DataParams(problem_set=name, validation=5, revision="abc"))
    problem.check_source()
    splits = problem.build()
    assert sizes(splits) == ({"train": 15, "validation": 5, "test": 10} if "train" in splits else {"test": 10})
    for split, found in rows.items():
        write_jsonl(tmp_path / f"{'test' if name in EVALUATION_SETS else split}.jsonl", found)
    assert splits == build(name, tmp_path, validation=5)


def test_without_hub_and_source_the_refusal_names_the_option(monkeypatch):
    def load_dataset(*args, **options):
        raise ConnectionError("Couldn't reach\n'openai/gsm8k' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    problem = problem_set(DataParams(problem_set="gsm8k"))
    for ask in (problem.check_source, problem.build):
        with pytest.raises(DataError, match=r"openai/gsm8k cannot be had from the hub: Couldn't reach '") as error:
            ask()
        assert "--source or data.source" in str(error.value) and len(str(error.value).splitlines()) == 2


def test_every_published_set_says_which_hub_splits_it_reads():
    for entry in PROBLEM_SETS.values():
        if isinstance(entry, TextSource):
            assert set(entry.hub.splits) == ({"test"} if entry.evaluation_only else {"train", "test"})


# --- the published files ---


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the published files are not beside this checkout")
@pytest.mark.parametrize(
    ("name", "folder", "expected"),
    [
        ("gsm8k", "gsm8k", {"train": 7100, "validation": 373, "test": 1319}),
        ("math", "math500", {"test": 500}),
        ("aime24", "aime24", {"test": 30}),
    ],
)
def test_published_files_have_the_published_sizes(name, folder, expected):
    splits = build(name, SHARED_DATA / folder)
    assert sizes(splits) == expected and not any(splits.dropped.values())
    assert all(row.answer == row.answer.strip() != "" for rows in splits.values() for row in rows)
