import re
from itertools import pairwise

import numpy as np
import pytest

from spo_core.config import DataParams
from spo_core.errors import ConfigError
from spo_core.problems import problem_set

SMALL = DataParams(train=300, validation=50, test=60)


@pytest.fixture(scope="module")
def splits():
    return problem_set(SMALL).build()


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
    assert problem_set(SMALL).build() == splits and splits.dropped == {}
    texts = [row.question for rows in splits.values() for row in rows]
    assert len(set(texts)) == len(texts)


def test_the_careful_solver_is_always_right_and_the_careless_one_carries_on(splits):
    careless, rng = problem_set(SMALL), np.random.default_rng(0)
    careful = problem_set(
        SMALL.model_copy(update={"arithmetic": SMALL.arithmetic.model_copy(update={"careless": 0.0})})
    )
    right = wrong_steps = steps = 0
    for row in splits["train"]:
        assert careful.demonstration(row, rng) == row.solution
        assert careful.extract(row.solution) == row.answer
        lines = careless.demonstration(row, rng).splitlines()
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
    problem = problem_set(SMALL)
    for row in splits["test"]:
        text = problem.prompt(row.question) + row.solution
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text and tokenizer.pad_token_id not in ids


def test_no_other_template_is_taken():
    with pytest.raises(ConfigError, match=r"data\.template plain: arithmetic has its own"):
        problem_set(DataParams(template="plain"))
