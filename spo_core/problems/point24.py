"""Game of 24: make 24 of four numbers from 1 to 13 with + - * / and parentheses, each number once.

The questions are all 1362 of 1820 quadruples that can be solved; docs/reference.md 4.4 has the published task. The
published rule wants exactly one box in the completion; here the last one counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import combinations, combinations_with_replacement
from typing import ClassVar

import numpy as np

from spo_core.config import DataParams
from spo_core.errors import DataError
from spo_core.problems.answers import boxes
from spo_core.problems.base import Generated, Question, Rule, Splits, check_disjoint
from spo_core.problems.templates import TEMPLATES, Template

LARGEST = 13
TARGET = Fraction(24)
DEFAULT_VALIDATION, DEFAULT_TEST = 100, 100

Numbers = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Point24(Generated):
    name: ClassVar[str] = "point24"
    rule: ClassVar[Rule] = "game24"
    template: ClassVar[Template] = TEMPLATES["r1_point24"]

    data: DataParams

    def build(self) -> Splits:
        """Split a seeded permutation in three; train has all that is left over unless ``data.train`` says fewer."""
        puzzles = solvable()
        validation, test = self.data.validation or DEFAULT_VALIDATION, self.data.test or DEFAULT_TEST
        left = len(puzzles) - validation - test
        train = self.data.train or left
        if not 0 < train <= left:
            raise DataError(
                f"point24 has {len(puzzles)} questions, {train if train > 0 else 1} + {validation} + {test} are asked "
                "for; lower data.train, data.validation or data.test"
            )
        order = np.random.default_rng([self.data.seed, 0]).permutation(len(puzzles))
        bounds = {"validation": (0, validation), "test": (validation, validation + test)}
        bounds["train"] = (validation + test, validation + test + train)
        splits = {
            split: [
                _question(f"point24-{split}-{row:04d}", *puzzles[index])
                for row, index in enumerate(order[slice(*bounds[split])])
            ]
            for split in ("train", "validation", "test")
        }
        check_disjoint(splits)
        return Splits(splits)

    def demonstration(self, row: Question, rng: np.random.Generator) -> str:
        return row.solution

    def extract(self, completion: str) -> str | None:
        return extract(completion)

    def alphabet(self) -> list[str] | None:
        return None  # the template's markers are those of a published tokenizer


def extract(completion: str) -> str | None:
    """Contents of the last box that is not empty, None without one."""
    return next((box for box in reversed(boxes(completion)) if box), None)


def solvable() -> list[tuple[Numbers, str]]:
    """Every solvable quadruple in ascending order, its numbers ascending too, with one expression that makes 24."""
    solved: list[tuple[Numbers, str]] = []
    for numbers in combinations_with_replacement(range(1, LARGEST + 1), 4):
        expression = _solution(numbers)
        if expression is not None:
            solved.append((numbers, expression))
    return solved


def _question(question_id: str, numbers: Numbers, expression: str) -> Question:
    solution = f"All four numbers together make 24: {expression} = 24. The answer is \\boxed{{{expression}}}."
    return Question(question_id, str(list(numbers)), " ".join(map(str, numbers)), solution)


def _solution(numbers: Numbers) -> str | None:
    for groups in _divided(numbers):
        smaller, larger = sorted(groups, key=len)
        others = _values(larger)
        for value, expression in _values(smaller).items():
            for operator, wanted in _wanted(value):
                if wanted in others:
                    pair = (others[wanted], expression) if operator[0] == "~" else (expression, others[wanted])
                    return f"{pair[0]} {operator[-1]} {pair[1]}"
    return None


def _wanted(value: Fraction) -> Iterator[tuple[str, Fraction]]:
    """(Operator, other operand) with which a value makes 24; ``~`` marks that the value is the second operand."""
    yield "+", TARGET - value
    yield "-", value - TARGET
    yield "~-", TARGET + value
    if value:  # no product with 0 and no quotient of 0 is 24
        yield "*", TARGET / value
        yield "/", value / TARGET
        yield "~/", TARGET * value


@cache
def _values(numbers: Numbers) -> dict[Fraction, str]:
    """Every value that all of these numbers can make, with the first expression for it, in parentheses if joined."""
    if len(numbers) == 1:
        return {Fraction(numbers[0]): str(numbers[0])}
    values: dict[Fraction, str] = {}
    for left, right in _divided(numbers):
        for a, first in _values(left).items():
            for b, second in _values(right).items():
                values.setdefault(a + b, f"({first} + {second})")
                values.setdefault(a * b, f"({first} * {second})")
                values.setdefault(a - b, f"({first} - {second})")
                values.setdefault(b - a, f"({second} - {first})")
                if b:
                    values.setdefault(a / b, f"({first} / {second})")
                if a:
                    values.setdefault(b / a, f"({second} / {first})")
    return values


def _divided(numbers: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
    """Every way to put the numbers into two groups; a way and its mirror image count once."""
    rest = range(1, len(numbers))
    for size in range(len(rest)):
        for chosen in combinations(rest, size):
            left = tuple(numbers[i] for i in (0, *chosen))
            yield left, tuple(numbers[i] for i in rest if i not in chosen)
