"""Prepared folders, and what is told of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from spo_core.config import load_params
from spo_core.errors import DataError
from spo_core.paths import Paths
from spo_core.problems.base import read_split
from spo_core.problems.prepare import check_source, describe, prepare_splits
from tests.conftest import ROOT


@pytest.fixture
def source(tmp_path):
    rows = [{"question": f"What is {i}?", "answer": f"#### {i}"} for i in range(30)]
    for split, part in (("train", rows[:25]), ("test", rows[20:])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return tmp_path


def params(*overrides):
    return load_params(ROOT, None, ("data.validation=5", *overrides))


def test_what_was_left_out_is_counted_and_told(source, tmp_path):
    gsm8k = params("data.problem_set=gsm8k", f"data.source={source}")
    check_source(gsm8k)
    counts = prepare_splits(gsm8k, Paths(tmp_path))
    assert describe(counts) == [
        "  train           15 questions",
        "  validation       5 questions",
        "  test            10 questions",
        "  left out: 5 training questions that stand in test",
    ]
    assert len(read_split(tmp_path / "data" / "gsm8k", "validation")) == counts["validation_questions"] == 5


def test_an_evaluation_set_has_no_split_to_train_on(source, tmp_path):
    (source / "test.jsonl").write_text(
        "".join(json.dumps({"question": f"{i}?", "answer": i}) + "\n" for i in range(10))
    )
    counts = prepare_splits(params("data.problem_set=college_math", f"data.source={source}"), Paths(tmp_path))
    assert counts == {"test_questions": 10}
    folder = tmp_path / "data" / "college_math"
    assert [path.name for path in folder.iterdir()] == ["test.jsonl"]
    with pytest.raises(
        DataError, match="prepared without a train split, for evaluation only; to train, choose another"
    ):
        read_split(folder, "train")


def test_a_refused_source_leaves_the_prepared_folder_as_it_was(source, tmp_path):
    gsm8k = params("data.problem_set=gsm8k", f"data.source={source}")
    prepare_splits(gsm8k, Paths(tmp_path))
    before = (tmp_path / "data" / "gsm8k" / "train.jsonl").read_bytes()
    (source / "test.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"test\.jsonl:1"):
        prepare_splits(gsm8k, Paths(tmp_path))
    assert (tmp_path / "data" / "gsm8k" / "train.jsonl").read_bytes() == before


OPTIONS = [
    ({}, [], None),
    ({"problem_set": "gsm8k", "source": "a: b"}, ["data.problem_set=gsm8k", 'data.source="a: b"'], "gsm8k"),
    ({"problem_set": "gsm8k", "name": "mine"}, ["data.problem_set=gsm8k"], "mine"),
    ({"preset": "gsm8k-smoke", "source": "."}, ['data.source="."'], None),
    ({"set_": ["data.seed=1"], "problem_set": "point24"}, ["data.seed=1", "data.problem_set=point24"], "point24"),
]
SCRIPT = """
import contextlib, json, sys
from flows import prepare as flow
flow.cli.served = contextlib.nullcontext
flow.check_source = lambda params: None
for options in json.loads(sys.argv[1]):
    def prepare(*arguments):
        print(json.dumps(arguments))
        return {"test_questions": 1}
    flow.prepare = prepare
    flow.command(**options)
"""


def test_the_options_of_the_command_line_are_overrides():
    """In a process of its own, as Prefect takes over the loggers of the one that imports it."""
    options = json.dumps([options for options, _, _ in OPTIONS])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, options], cwd=ROOT, capture_output=True, text=True, check=True, timeout=500
    )
    printed = done.stdout.splitlines()
    expected = [[given.get("preset"), overrides, name] for given, overrides, name in OPTIONS]
    assert [json.loads(line) for line in printed[::3]] == expected
    assert set(printed[2::3]) == {"  test             1 questions"}
    assert [Path(line.removeprefix("prepared ")).relative_to(ROOT).as_posix() for line in printed[1::3]][:3] == [
        "data/arithmetic",
        "outputs/runs/gsm8k/data/gsm8k",
        "outputs/runs/mine/data/gsm8k",
    ]
