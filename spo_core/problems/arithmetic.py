"""Generated left-to-right arithmetic with written-out steps: the embedded default.

``7+5*3-9=?`` is solved as ``7+5=12``, ``12*3=36``, ``36-9=27``, ``#### 27``; every intermediate lies in 0..99.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np

from spo_core.config import DataParams
from spo_core.config.data import ArithmeticParams
from spo_core.errors import DataError
from spo_core.problems.base import SPLITS, Generated, Question, Rule, Splits, check_disjoint, extract_answer
from spo_core.problems.templates import TEMPLATES, Template

LARGEST = 99
WORDS = ("so ", "then ", "now ", "next ", "well ", "okay ", "thus ", "here ")
BELIEVED = 0.6  # probability that a fact believed wrongly is stated so
MOST_REPEATS = 1000  # draws in a row without a new question


@dataclass(frozen=True, slots=True)
class Arithmetic(Generated):
    name: ClassVar[str] = "arithmetic"
    rule: ClassVar[Rule] = "math"
    template: ClassVar[Template] = TEMPLATES["arithmetic"]

    data: DataParams

    def build(self) -> Splits:
        params = self.data
        rng = np.random.default_rng([params.seed, 0])
        asked = (params.train, params.validation, params.test)
        sizes = {s: n or own for s, n, own in zip(SPLITS, asked, params.arithmetic.sizes, strict=True)}
        seen: set[str] = set()
        splits: dict[str, list[Question]] = {}
        for split, size in sizes.items():
            splits[split] = []
            repeats = 0
            while len(splits[split]) < size:
                if repeats > MOST_REPEATS:
                    raise DataError(
                        f"data.arithmetic.steps {list(params.arithmetic.steps)} gives too few different questions: "
                        f"{len(seen)} found, {sum(sizes.values())} asked for; lower data.train or raise the steps"
                    )
                question, solution = _generate(rng, params.arithmetic)
                repeats = repeats + 1 if question in seen else 0
                if not repeats:
                    seen.add(question)
                    answer = str(_last_value(solution))
                    row_id = f"arithmetic-{split}-{len(splits[split]):05d}"
                    splits[split].append(Question(row_id, question, answer, _written(solution)))
        check_disjoint(splits)
        return Splits(splits)

    def demonstration(self, row: Question, rng: np.random.Generator) -> str:
        """A careless solution: each step is wrong with probability ``careless``, and the next goes on from it."""
        params = self.data.arithmetic
        first, operations = _parse(row.question)
        beliefs = _beliefs(self.data.seed, params.beliefs)
        value, right, steps = first, first, []
        for operator, operand in operations:
            if value != right and params.recovers and rng.random() < params.recovers:
                value = right
            result, right = _apply(value, operator, operand), _apply(right, operator, operand)
            believed = beliefs.get((value % 10, operator, operand))
            if believed is not None and rng.random() < BELIEVED:
                result = (result + believed) % (LARGEST + 1)
            elif rng.random() < params.careless:
                result = int((result + rng.integers(1, LARGEST + 1)) % (LARGEST + 1))
            steps.append((value, operator, operand, result))
            value = result
        if not params.words:
            return _written(steps)
        drawn = rng.integers(len(WORDS), size=(len(steps) + 1, params.words))
        return "".join(
            "".join(WORDS[i] for i in own) + line
            for own, line in zip(drawn.tolist(), _written(steps).splitlines(True), strict=True)
        )

    def extract(self, completion: str) -> str | None:
        return extract_answer(self.template, completion)

    def mistake(self, question: str, completion: str) -> tuple[int, int] | None:
        """The first line that is not the right one, a step or the answer, as characters of the completion."""
        start, solution = 0, _written(_solve(question)).splitlines()
        for number, line in enumerate(completion.splitlines(True)):
            if [_LEADING.sub("", line).rstrip("\n")] != solution[number : number + 1]:
                return start, start + len(line)
            start += len(line)
        return None

    def alphabet(self) -> list[str]:
        params = self.data.arithmetic
        more = [*("%" if params.remainders else ""), *(WORDS if params.words else ())]
        return [*"0123456789+-*=?\n", "#### ", *more]


Step = tuple[int, str, int, int]
Fact = tuple[int, str, int]
_LEADING = re.compile("^(?:" + "|".join(WORDS) + ")*")


@cache
def _beliefs(seed: int, share: float) -> dict[Fact, int]:
    """Facts believed wrongly, and by how much their results are off."""
    rng = np.random.default_rng([seed, 1])
    facts = [(digit, operator, operand) for digit in range(10) for operator in "+-*%" for operand in range(2, 10)]
    return {fact: int(rng.integers(1, 10)) for fact in facts if rng.random() < share}


def _apply(value: int, operator: str, operand: int) -> int:
    """Result of one step modulo 100: careless intermediates may leave 0..99."""
    return _unfolded(value, operator, operand) % (LARGEST + 1)


def _generate(rng: np.random.Generator, params: ArithmeticParams) -> tuple[str, list[Step]]:
    """A question and its right steps; operands are 2 to 9, those of % 2 to 5, and no step leaves 0..99."""
    value = int(rng.integers(1, 51))
    question, steps = str(value), []
    fewest, most = params.steps
    for _ in range(int(rng.integers(fewest, most + 1))):
        operators = _allowed(value, "+-*%"[: 3 + params.remainders])
        operator, operands = operators[rng.integers(len(operators))]
        operand = operands[rng.integers(len(operands))]
        result = _apply(value, operator, operand)
        steps.append((value, operator, operand, result))
        question += f"{operator}{operand}"
        value = result
    return question, steps


@cache
def _allowed(value: int, operators: str) -> list[tuple[str, list[int]]]:
    """The operators that have operands after which a value stays in 0..99, sorted, and these operands."""
    found = [
        (o, [n for n in range(2, 6 if o == "%" else 10) if 0 <= _unfolded(value, o, n) <= LARGEST])
        for o in sorted(operators)
    ]
    return [(operator, operands) for operator, operands in found if operands]


def _unfolded(value: int, operator: str, operand: int) -> int:
    return {"+": value + operand, "-": value - operand, "*": value * operand, "%": value % operand}[operator]


def _parse(question: str) -> tuple[int, list[tuple[str, int]]]:
    first = re.split(r"[-+*%]", question, maxsplit=1)[0]
    rest = question[len(first) :]
    return int(first), [(rest[i], int(rest[i + 1])) for i in range(0, len(rest), 2)]


def _solve(question: str) -> list[Step]:
    value, operations = _parse(question)
    steps = []
    for operator, operand in operations:
        steps.append((value, operator, operand, _apply(value, operator, operand)))
        value = steps[-1][3]
    return steps


def _written(steps: list[Step]) -> str:
    lines = [f"{value}{operator}{operand}={result}\n" for value, operator, operand, result in steps]
    return "".join(lines) + f"#### {_last_value(steps)}"


def _last_value(steps: list[Step]) -> int:
    return steps[-1][3]
