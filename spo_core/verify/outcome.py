"""Verdict on one completion: plain numbers compared exactly, in decimal."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from spo_core.problems.base import ProblemSet

_NUMBER = re.compile(r"-?(\d{1,3}(,\d{3})+|\d{1,40})(\.\d{1,40})?|-?\.\d{1,40}", re.ASCII)


class Outcome(StrEnum):
    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    UNPARSABLE = "unparsable"
    TRUNCATED = "truncated"


@dataclass(frozen=True, slots=True)
class Verdict:
    outcome: Outcome
    given: str | None

    @property
    def reward(self) -> float:
        return 1.0 if self.outcome is Outcome.CORRECT else 0.0


def grade(problem: ProblemSet, completion: str, answer: str) -> Verdict:
    """Grade one completion against the gold answer. Takes time linear in the completion's length."""
    given = problem.extract(completion)
    if given is None:
        return Verdict(Outcome.NO_ANSWER, None)
    if given == answer:
        return Verdict(Outcome.CORRECT, given)
    number, gold = parse_number(given), parse_number(answer)
    if number is None or gold is None:
        return Verdict(Outcome.UNPARSABLE if number is None and gold is not None else Outcome.WRONG, given)
    return Verdict(Outcome.CORRECT if number == gold else Outcome.WRONG, given)


def parse_number(text: str) -> Decimal | None:
    """An exact decimal from ``42``, ``-1,234.50``, ``$42``, ``42.``; None where the text is not one number."""
    stripped = text.strip().removeprefix("$").removesuffix(".").strip()
    if not _NUMBER.fullmatch(stripped):
        return None
    return Decimal(stripped.replace(",", ""))
