from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spo_core.problems import problem_set
from spo_core.verify import Outcome, grade
from spo_core.verify.outcome import parse_number

PROBLEM = problem_set("gsm8k")


@pytest.mark.parametrize(
    ("completion", "answer", "outcome"),
    [
        ("so\n#### 42", "42", Outcome.CORRECT),
        ("#### 1,234", "1234", Outcome.CORRECT),
        ("#### $42.00", "42", Outcome.CORRECT),
        ("#### 42.", "42", Outcome.CORRECT),
        ("#### 41\n#### 42", "42", Outcome.CORRECT),
        ("#### 42\nmore text", "42", Outcome.CORRECT),
        ("#### 43", "42", Outcome.WRONG),
        ("#### -42", "42", Outcome.WRONG),
        ("#### 10,00", "1000", Outcome.UNPARSABLE),
        ("#### many", "42", Outcome.UNPARSABLE),
        ("the answer is 42", "42", Outcome.NO_ANSWER),
        ("####", "42", Outcome.NO_ANSWER),
        ("", "42", Outcome.NO_ANSWER),
    ],
)
def test_outcomes(completion, answer, outcome):
    verdict = grade(PROBLEM, completion, answer)
    assert verdict.outcome is outcome and verdict.reward == float(outcome is Outcome.CORRECT)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_a_number_equals_itself_however_it_is_written(value):
    for text in (f"{value}", f"{value:,}", f" ${value} " if value >= 0 else f"{value}"):
        assert parse_number(text) == Decimal(value)


@given(st.text())
def test_no_text_raises(text):
    grade(PROBLEM, text, "42")
    parse_number(text)
    assert grade(PROBLEM, "#### " + text, "42").outcome in set(Outcome)
