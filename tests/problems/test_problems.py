import json
import re
from itertools import pairwise

import numpy as np
import pytest

from spo_core.config import DataParams
from spo_core.errors import ConfigError, DataError
from spo_core.problems import PROBLEM_SETS, problem_set
from spo_core.problems.base import Question, check_disjoint, normalized, read_split, write_split
from spo_core.verify import Outcome, grade
from tests.conftest import SHARED_DATA

SMALL = DataParams(train=300, validation=50, test=60)


@pytest.fixture(scope="module")
def splits():
    return problem_set("arithmetic").build(SMALL)


def left_to_right(question: str) -> int:
    value, *rest = re.findall(r"\d+|[-+*]", question)
    total = int(value)
    for operator, operand in zip(rest[::2], rest[1::2], strict=True):
        total = {"+": total + int(operand), "-": total - int(operand), "*": total * int(operand)}[operator]
        assert 0 <= total <= 99
    return total


def test_answers_are_those_of_an_independent_calculator(splits):
    for rows in splits.values():
        for row in rows:
            assert row.answer == str(left_to_right(row.question))
            assert 6 <= len(re.findall("[-+*]", row.question)) <= 8


def test_splits_are_fixed_sized_and_share_no_question(splits):
    assert {k: len(v) for k, v in splits.items()} == {"train": 300, "validation": 50, "test": 60}
    assert problem_set("arithmetic").build(SMALL) == splits
    texts = [row.question for rows in splits.values() for row in rows]
    assert len(set(texts)) == len(texts)


def test_a_shared_question_is_refused():
    row = Question("a", "1+1", "2")
    with pytest.raises(DataError, match="also stands in train"):
        check_disjoint({"train": [row], "test": [Question("b", " 1+1 ", "2")]})
    assert normalized(" A\n b ") == "a b"


def test_the_careful_solver_is_always_right_and_the_careless_one_carries_on(splits):
    problem, rng = problem_set("arithmetic"), np.random.default_rng(0)
    careful = SMALL.model_copy(update={"arithmetic": SMALL.arithmetic.model_copy(update={"careless": 0.0})})
    right = wrong_steps = steps = 0
    for row in splits["train"]:
        assert problem.demonstration(row, careful, rng) == row.solution
        assert grade(problem, row.solution, row.answer).outcome is Outcome.CORRECT
        lines = problem.demonstration(row, SMALL, rng).splitlines()
        values = [re.match(r"(\d+)([-+*])(\d)=(\d+)$", line).groups() for line in lines[:-1]]
        for (before, operator, operand, after), (start, *_) in pairwise(values):
            exact = {"+": int(before) + int(operand), "-": int(before) - int(operand), "*": int(before) * int(operand)}
            wrong_steps += int(after) != exact[operator] % 100
            steps += 1
            assert after == start
        assert lines[-1] == f"#### {values[-1][3]}"
        right += values[-1][3] == row.answer
    assert 0.08 < wrong_steps / steps < 0.16 and 0.25 < right / 300 < 0.6


def test_the_character_tokenizer_gives_back_every_text(splits, tokenizer):
    problem = problem_set("arithmetic")
    for row in splits["test"]:
        text = problem.prompt(row.question) + row.solution
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text and tokenizer.pad_token_id not in ids


def test_prepared_files_round_trip_and_damage_is_named(tmp_path, splits):
    write_split(tmp_path / "test.jsonl", splits["test"])
    assert read_split(tmp_path, "test") == splits["test"]
    with pytest.raises(DataError, match=r"train\.jsonl: no such dataset.*flows\.prepare"):
        read_split(tmp_path, "train")
    (tmp_path / "train.jsonl").write_text('{"question": 1}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:1: not a prepared question"):
        read_split(tmp_path, "train")


def test_line_separators_inside_a_question_are_not_line_ends(tmp_path):
    rows = [Question("a", "one\u2028two\x85three", "1", "x\ny"), Question("b", "four", "2")]
    write_split(tmp_path / "test.jsonl", rows)
    assert read_split(tmp_path, "test") == rows


def test_an_unknown_problem_set_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="arithmetic, gsm8k"):
        problem_set("gsm9k")
    assert all(cls().name == name for name, cls in PROBLEM_SETS.items())


@pytest.fixture
def gsm8k_source(tmp_path):
    rows = [
        {"question": f"How many is {i} and {i}?", "answer": f"{i}+{i}=<<{i}+{i}={2 * i}>>{2 * i}\n#### {2 * i}"}
        for i in range(30)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[:20]))
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[20:]))
    return tmp_path


def test_gsm8k_reads_its_own_files(gsm8k_source):
    params = DataParams(problem_set="gsm8k", source=str(gsm8k_source), validation=5)
    splits = problem_set("gsm8k").build(params)
    assert {k: len(v) for k, v in splits.items()} == {"train": 15, "validation": 5, "test": 10}
    row = splits["test"][3]
    assert (row.answer, row.solution) == ("46", "23+23=46\n#### 46")
    assert problem_set("gsm8k").prompt("Q?") == "[MATH_TASK] Problem:\nQ?\n\nSolution:"


@pytest.mark.parametrize("source", [None, "nowhere"])
def test_gsm8k_without_its_files_is_refused(source, tmp_path):
    where = None if source is None else str(tmp_path / source)
    with pytest.raises(DataError, match=r"data\.source"):
        problem_set("gsm8k").build(DataParams(problem_set="gsm8k", source=where))


def test_a_malformed_gsm8k_row_is_named(gsm8k_source):
    with (gsm8k_source / "test.jsonl").open("a") as file:
        file.write('{"question": "?", "answer": "no marker"}\n')
    with pytest.raises(DataError, match=r"test\.jsonl:11: not a GSM8K row: no answer"):
        problem_set("gsm8k").build(DataParams(problem_set="gsm8k", source=str(gsm8k_source), validation=5))


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="GSM8K's files are not beside this checkout")
def test_published_gsm8k_has_the_published_sizes():
    params = DataParams(problem_set="gsm8k", source=str(SHARED_DATA / "gsm8k"), validation=373)
    splits = problem_set("gsm8k").build(params)
    assert {k: len(v) for k, v in splits.items()} == {"train": 7100, "validation": 373, "test": 1319}
