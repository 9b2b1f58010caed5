"""The rewards that are ours, against their formulas."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spo_core.config import VerifyParams
from spo_core.problems.base import Question
from spo_core.verify import Outcome
from spo_core.verify.reward import Response, Rewards, overlong

QUESTION = Question("q", "1 + 1?", "2")


def response(text: str = "", outcome: Outcome = Outcome.CORRECT, tokens: int = 3, limit: int = 10) -> Response:
    return Response(text, QUESTION, outcome, "stop", tokens, limit)


def rewards(*terms: dict, **more: object) -> Rewards:
    return Rewards(VerifyParams.model_validate_json(json.dumps({"reward": terms, **more})))


def dapo(length: int, longest: int, cache: int) -> float:
    """Equation 13 of arXiv 2503.14476, as it stands there."""
    if length <= longest - cache:
        return 0.0
    if length <= longest:
        return ((longest - cache) - length) / cache
    return -1.0


@given(st.integers(1, 400), st.integers(1, 300), st.integers(1, 200))
def test_the_overlong_penalty_is_dapos(length, longest, cache):
    assert -overlong(length, longest, cache) == pytest.approx(dapo(length, longest, cache))


def test_terms_are_added():
    both = rewards({"type": "outcome"}, {"type": "overlong", "margin": 4, "penalty": 0.5})
    found = both([response(tokens=n) for n in (6, 7, 8, 10, 11)] + [response(outcome=Outcome.WRONG, tokens=9)])
    assert [reward for reward, _ in found] == pytest.approx([1, 0.875, 0.75, 0.5, 0.5, -0.375])
    assert [outcome for _, outcome in found] == [Outcome.CORRECT] * 5 + [Outcome.WRONG] and not both.reads_texts


def test_a_format_is_a_bonus_and_a_pattern_that_takes_for_ever_a_timeout():
    """The regular expression runs under the limit of a comparison: this one is exponential."""
    chosen = rewards(
        {"type": "outcome"},
        {"type": "format", "pattern": r"(?s)<a>.*</a>", "bonus": 0.25},
        {"type": "format", "pattern": r"^(x+x+)+y$", "bonus": 8.0},
        seconds=0.5,
        workers=1,
    )
    try:
        texts = ["<a>\n</a>", "<a>", "x" * 60, "xxxy", "</a><a>"]
        found = chosen([response(text) for text in texts])
    finally:
        chosen.close()
    assert [reward for reward, _ in found] == [1.25, 1.0, 0.0, 9.0, 1.0]
    assert [outcome for _, outcome in found] == [Outcome.CORRECT] * 2 + [Outcome.TIMEOUT] + [Outcome.CORRECT] * 2


def test_the_outcome_alone_is_the_default():
    default = Rewards(VerifyParams())
    assert default([response(outcome=o) for o in Outcome]) == [(default.of_outcome(o), o) for o in Outcome]
    assert default.of_outcome(Outcome.CORRECT) == 1 and default.of_outcome(Outcome.TRUNCATED) == 0
