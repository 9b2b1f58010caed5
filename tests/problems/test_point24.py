"""The game of 24's questions: all that can be solved, and no other."""

import random
from fractions import Fraction
from itertools import combinations_with_replacement, permutations, product

import numpy as np
import pytest

from spo_core.config import DataParams
from spo_core.errors import ConfigError, DataError
from spo_core.problems.point24 import Point24, solvable
from spo_core.verify import game24
from spo_core.verify.outcome import Outcome

PUZZLES = solvable()


def joined(operator, a, b):
    if a is None or b is None:
        return None
    if operator == "/":
        return a / b if b else None
    return {"+": a + b, "-": a - b, "*": a * b}[operator]


def can_make_24(numbers) -> bool:
    """Every order, every choice of operators and each of the five ways to put parentheses."""
    for a, b, c, d in set(permutations(map(Fraction, numbers))):
        for p, q, r in product("+-*/", repeat=3):
            values = (
                joined(r, joined(q, joined(p, a, b), c), d),
                joined(r, joined(p, a, joined(q, b, c)), d),
                joined(q, joined(p, a, b), joined(r, c, d)),
                joined(p, a, joined(r, joined(q, b, c), d)),
                joined(p, a, joined(q, b, joined(r, c, d))),
            )
            if 24 in values:
                return True
    return False


def test_the_known_number_of_puzzles_each_once():
    assert len(PUZZLES) == 1362
    assert [numbers for numbers, _ in PUZZLES] == sorted({numbers for numbers, _ in PUZZLES})
    assert solvable() == PUZZLES


def test_brute_force_finds_the_same_puzzles_solvable():
    found = {numbers for numbers, _ in PUZZLES}
    every = list(combinations_with_replacement(range(1, 14), 4))
    assert len(every) == 1820
    hard = [(1, 1, 1, 1), (13, 13, 13, 13), (3, 3, 8, 8), (1, 5, 5, 5), (1, 3, 4, 6), (1, 4, 5, 6)]
    for numbers in hard + random.Random(0).sample(every, 150):
        assert can_make_24(numbers) is (numbers in found), numbers


def test_every_solution_is_right_and_no_other_puzzle_has_it():
    for (numbers, expression), (other, _) in zip(PUZZLES, PUZZLES[1:] + PUZZLES[:1], strict=True):
        assert game24.compare(expression, " ".join(map(str, numbers))) is Outcome.CORRECT
        assert game24.compare(expression, " ".join(map(str, other))) is Outcome.WRONG
        assert game24.compare(expression.replace(" ", "") + "=24", str(list(numbers))) is Outcome.CORRECT


def test_splits():
    problem = Point24(DataParams(problem_set="point24", validation=100))
    splits = problem.build()
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 1162, "validation": 100, "test": 100}
    rows = [row for part in splits.values() for row in part]
    assert len({row.question for row in rows}) == len({row.question_id for row in rows}) == 1362
    for row in rows:
        assert row.question == str([int(number) for number in row.answer.split()])
        answer = problem.extract(problem.demonstration(row, np.random.default_rng(0)))
        assert answer is not None and game24.compare(answer, row.answer) is Outcome.CORRECT
    assert problem.build() == splits
    assert Point24(DataParams(problem_set="point24", validation=100, seed=1)).build() != splits


def test_sizes_asked_for():
    splits = Point24(DataParams(problem_set="point24", train=10, validation=5, test=7)).build()
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 10, "validation": 5, "test": 7}
    for sizes in ({"train": 1300}, {"test": 1300}, {"validation": 1262}):
        with pytest.raises(DataError, match="1362"):
            Point24(DataParams.model_validate(sizes)).build()


def test_prompt_and_answer():
    problem = Point24(DataParams(problem_set="point24"))
    assert problem.prompt("[4, 4, 6, 8]").endswith(
        r"\boxed{1 * 2 * 3 * 4}.<｜User｜>[4, 4, 6, 8]<｜Assistant｜><think>" + "\n"
    )
    assert problem.rule == "game24" and not problem.evaluation_only and problem.alphabet() is None
    assert problem.extract(r"\boxed{4*6} or \boxed{\frac{8}{3-{8/3}}} \boxed{}") == r"\frac{8}{3-{8/3}}"
    assert problem.extract("24") is None
    with pytest.raises(ConfigError, match="template"):
        Point24(DataParams(problem_set="point24", template="math_task"))
