"""A problem set of one's own, by ``data.jsonl`` or with a dozen lines, both as docs/problem-sets.md shows them."""

import json
import re
import shutil

import pytest

from spo_core.config import DataParams, JsonlParams, load_params
from spo_core.errors import ConfigError, DataError
from spo_core.paths import Paths
from spo_core.problems import problem_set
from spo_core.problems.base import read_split
from spo_core.problems.prepare import check_source, prepare_splits
from spo_core.problems.text_set import TextSet
from tests.conftest import ROOT

SECTION = (ROOT / "docs" / "problem-sets.md").read_text().split("\n## Your own problem set\n")[1].split("\n## ")[0]
EXAMPLES = dict(re.findall(r"```(yaml|python)\n(.*?)```", SECTION, re.DOTALL))


@pytest.fixture
def project(tmp_path):
    """A project's folder with the preset that the page shows, and the files it names."""
    shutil.copytree(ROOT / "params", tmp_path / "params")
    name = re.match(r"# params/presets/(\w+)\.yaml", EXAMPLES["yaml"])[1]
    (tmp_path / "params" / "presets" / f"{name}.yaml").write_text(EXAMPLES["yaml"])
    (tmp_path / "own").mkdir()
    rows = [{"ask": f"What is {i} and {i}?", "result": 2 * i} for i in range(60)]
    for split, part in (("train", rows[:50]), ("test", rows[40:])):
        (tmp_path / "own" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return tmp_path


def test_the_example_without_code_is_prepared(project):
    params = load_params(project, "sums", (f"data.source={project}/own",))
    check_source(params)
    counts = prepare_splits(params, Paths(project))
    assert counts == {
        "train_questions": 20,
        "validation_questions": 20,
        "test_questions": 20,
        "dropped_test_questions": 10,
        "dropped_repeated_questions": 0,
    }
    row = read_split(project / "data" / "sums", "test")[1]
    assert (row.question_id, row.question, row.answer) == ("sums-test-00001", "What is 41 and 41?", "82")
    problem = problem_set(params.data)
    assert problem.prompt(row.question) == "Question: What is 41 and 41?\nAnswer:"
    assert problem.extract("It is\n#### 82") == "82"
    assert problem.template.stop == ("\nQuestion:",) and problem.rule == "math" and not problem.evaluation_only


def test_the_example_in_code_reads_its_fields(tmp_path):
    names: dict = {}
    exec(EXAMPLES["python"], names)
    for split, range_ in (("train", range(10)), ("test", range(10, 15))):
        rows = [{"riddle": f"R{i}", "reply": f"an echo {i}"} for i in range_]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    problem = TextSet(names["RIDDLES"], DataParams(problem_set="riddles", source=str(tmp_path), validation=2))
    splits = problem.build()
    assert {k: len(v) for k, v in splits.items()} == {"train": 8, "validation": 2, "test": 5}
    assert (problem.rule, splits["test"][0].question, splits["test"][0].answer) == ("text", "R10", "an echo 10")
    assert len(EXAMPLES["python"].splitlines()) <= 12


def test_without_train_it_is_for_evaluation_only(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"question": "1+1", "answer": "2", "why": "since"}\n')
    jsonl = JsonlParams(test="t.jsonl", solution="why", template="r1_boxed")
    problem = problem_set(DataParams(problem_set="mine", source=str(tmp_path), jsonl=jsonl))
    problem.check_source()
    assert problem.evaluation_only and list(problem.build()) == ["test"]
    assert problem.build()["test"][0].solution == "since" and problem.extract("\\boxed{2}") == "2"


def test_files_lie_in_the_projects_folder_without_a_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    assert problem_set(DataParams(problem_set="mine", jsonl=JsonlParams(test="t.jsonl"))).build()["test"]


def test_a_missing_file_and_field_are_named(tmp_path):
    jsonl = JsonlParams(train="a.jsonl", test="b.jsonl", answer="gold")
    problem = problem_set(DataParams(problem_set="mine", source=str(tmp_path), jsonl=jsonl))
    with pytest.raises(DataError, match=r"a\.jsonl: no such file.*the train split of mine"):
        problem.check_source()
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    problem.check_source()
    with pytest.raises(
        DataError, match=r"b\.jsonl:1: not a row of mine: no text in field gold; its fields are question"
    ):
        problem.build()


def test_a_built_in_name_is_refused():
    with pytest.raises(ConfigError, match=r"data\.problem_set gsm8k is built in"):
        problem_set(DataParams(problem_set="gsm8k", jsonl=JsonlParams(test="t.jsonl")))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.problem_set=My-Set", r"data\.problem_set: String should match pattern"),
        ("data.jsonl.rule=game24", r"data\.jsonl\.rule: Input should be 'math' or 'text'"),
        ("data.jsonl.anwser=x", r"unknown key data\.jsonl\.anwser"),
        ('data.jsonl.stop=[""]', "stop: an empty string would end every completion"),
        ("data.template=plain", r"with data\.jsonl the template stands in data\.jsonl\.template"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_key(project, override, message):
    with pytest.raises(ConfigError, match=message):
        load_params(project, "sums", (override,))
