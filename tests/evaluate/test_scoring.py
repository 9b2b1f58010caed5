"""Grading, scores, and the checks between the two environments."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spo_core.config import DataParams, VerifyParams
from spo_core.errors import DataError
from spo_core.evaluate.lighteval.details import Sample, by_question, read_details, write_details
from spo_core.evaluate.lighteval.exchange import Answers, Report
from spo_core.evaluate.result import CellScore, EvaluationError, Protocol, Tokens
from spo_core.evaluate.scoring import (
    check_prompts,
    check_report,
    grade_answers,
    lighteval_prompt_hash,
    score_cell,
    with_lighteval,
)
from spo_core.evaluate.suite import Cell
from spo_core.problems import problem_set
from spo_core.problems.base import Question
from spo_core.verify import Outcome
from spo_core.verify.verifier import Verifier
from tests.conftest import SHARED_DATA

PROBLEM = problem_set(DataParams())
VERIFIER = Verifier(VerifyParams())
CELL = Cell("arithmetic", "long", 9)
ROWS = [Question("q0", "3+4", "7"), Question("q1", "9-5", "4")]
ANSWERS = [
    Answers("q1", [5, 6], ["9-5=4\n#### 4", "9-5=4\n"], [8, 5], [True, True]),
    Answers("q0", [4], ["3+4=7\n#### 7", "3+4=7\n#### 7"], [8, 9], [True, False]),
]
PROTOCOL = Protocol(
    "arithmetic", 9, 2, 2, 1.0, 0.95, "0" * 64, "1" * 64, "exact", "transformers", "float32", {"torch": "2"}
)
PROMPT_HASH = lighteval_prompt_hash([PROBLEM.prompt(row.question) for row in ROWS])


def graded() -> list[list[Sample]]:
    return grade_answers(VERIFIER, PROBLEM, ROWS, ANSWERS, samples=2)


def score(questions, **changes) -> CellScore:
    named = {"model": "final", "model_digest": "2" * 64, "suite": "embedded", "prompt_hash": PROMPT_HASH}
    return score_cell(CELL, questions, PROTOCOL, **{"majority": 1.0, "seed": 3, "seconds": 1.2345} | named | changes)


@pytest.mark.parametrize(
    ("completion", "stopped", "outcome"),
    [
        ("#### 7", True, Outcome.CORRECT),
        ("#### 8", True, Outcome.WRONG),
        ("3+4=7\n", True, Outcome.NO_ANSWER),
        ("#### 7+", True, Outcome.UNPARSABLE),
        ("#### 7", False, Outcome.TRUNCATED),
        ("", False, Outcome.TRUNCATED),
    ],
)
def test_what_did_not_stop_is_truncated_whatever_it_says(completion, stopped, outcome):
    answers = [Answers("q0", [4], [completion], [8], [stopped])]
    (((sample,),)) = grade_answers(VERIFIER, PROBLEM, ROWS[:1], answers, samples=1)
    assert sample.outcome is outcome and sample.correct == (outcome is Outcome.CORRECT)


def test_samples_stand_in_the_order_of_the_questions():
    assert [(s.question_id, s.sample, s.gold, s.outcome, s.lighteval) for row in graded() for s in row] == [
        ("q0", 0, "7", Outcome.CORRECT, None),
        ("q0", 1, "7", Outcome.TRUNCATED, None),
        ("q1", 0, "4", Outcome.CORRECT, None),
        ("q1", 1, "4", Outcome.NO_ANSWER, None),
    ]
    assert [sample.given for sample in graded()[0]] == ["7", None]  # what was cut off is not graded


@pytest.mark.parametrize(
    "answers",
    [
        ANSWERS[:1],
        [*ANSWERS, ANSWERS[0]],
        [ANSWERS[0], replace(ANSWERS[1], question_id="q2")],
        [ANSWERS[0], replace(ANSWERS[1], completions=["#### 7"])],
    ],
    ids=["missing", "twice", "another", "too few samples"],
)
def test_incomplete_answers_are_refused(answers):
    with pytest.raises(EvaluationError, match="2 questions with 2 each"):
        grade_answers(VERIFIER, PROBLEM, ROWS, answers, samples=2)


def test_a_score_by_hand():
    assert score(with_lighteval(graded(), ["correct", "correct", "wrong", "wrong"])) == CellScore(
        model="final",
        model_digest="2" * 64,
        suite="embedded",
        cell="arithmetic-long",
        context="long",
        accuracy=0.5,
        standard_error=0.0,
        interval=score(graded()).interval,
        majority=1.0,
        truncated=0.25,
        no_answer=0.25,
        unparsable=0.0,
        timeout=0.0,
        tokens=Tokens(mean=7.5, median=8.0, p90=8.7, most=9, mean_correct=8.0),
        cross_check=score(with_lighteval(graded(), ["correct", "correct", "wrong", "wrong"])).cross_check,
        protocol=PROTOCOL,
        lighteval_prompt_hash=PROMPT_HASH,
        seed=3,
        seconds=1.234,
        generated_tokens=30,
    )


def test_lighteval_s_verdicts_change_nothing_but_the_cross_check():
    judged = with_lighteval(graded(), ["correct", "correct", "wrong", "timeout"])
    assert [sample.lighteval for row in judged for sample in row] == ["correct", "correct", "wrong", "timeout"]
    ours, both = score(graded()), score(judged)
    assert ours.cross_check is None and replace(both, cross_check=None) == ours
    check = both.cross_check
    assert check is not None and (check.accuracy, check.disagreements, check.timeouts) == (0.5, 2, 1)
    assert check.truncated_disagreements == 1  # a truncated one that states the right answer
    with pytest.raises(EvaluationError, match="3 verdicts on 4"):
        with_lighteval(graded(), ["correct"] * 3)


SAMPLE = st.builds(
    Sample,
    question_id=st.just("q"),
    sample=st.just(0),
    completion=st.just(""),
    gold=st.just("1"),
    given=st.none(),
    outcome=st.sampled_from([*set(Outcome) - {Outcome.SEVERAL_ANSWERS}]),
    lighteval=st.none(),
    tokens=st.integers(1, 9),
)


@given(st.data(), st.integers(1, 6), st.integers(1, 4))
def test_shares_and_tokens_are_those_of_all_completions(data, questions, samples):
    rows = data.draw(
        st.lists(st.lists(SAMPLE, min_size=samples, max_size=samples), min_size=questions, max_size=questions)
    )
    flat = [sample for row in rows for sample in row]
    found = score(rows)
    wrong = sum(s.outcome is Outcome.WRONG for s in flat) / len(flat)
    shares = (found.accuracy, found.truncated, found.no_answer, found.unparsable, found.timeout, wrong)
    assert sum(shares) == pytest.approx(1)
    assert found.accuracy == pytest.approx(np.mean([s.correct for s in flat]))
    assert found.generated_tokens == pytest.approx(found.tokens.mean * len(flat))
    assert found.tokens.median <= found.tokens.p90 <= found.tokens.most == max(s.tokens for s in flat)
    assert (found.tokens.mean_correct is None) == (found.accuracy == 0)
    assert (found.interval is None) == (samples == 1) and (found.standard_error is None) == (questions == 1)
    if found.interval is not None:
        assert found.interval[0] <= found.accuracy + 1e-12 and found.accuracy <= found.interval[1] + 1e-12
    permuted = score([row[::-1] for row in rows[::-1]])
    assert permuted.accuracy == found.accuracy and permuted.tokens == found.tokens
    assert CellScore.from_json(found.to_json()) == found
    old = found.to_json().replace('"grader": "exact"', '"grader": "corrected"')
    assert old != found.to_json() and CellScore.from_json(old) == found  # its name before


def test_prompts_must_be_those_of_training():
    check_prompts(ANSWERS, {"q0": [4], "q1": [5, 6]})
    for expected in ({"q0": [4], "q1": [1, 5, 6]}, {"q0": [4]}):
        with pytest.raises(EvaluationError, match="question q1"):
            check_prompts(ANSWERS, expected)


def test_what_lighteval_reports_must_follow_from_completions_and_prompts():
    found = score(graded())
    check_report(found, Report(0.75 + 1e-12, PROMPT_HASH, {}))
    for reported in (0.75 + 1e-8, float("nan")):
        with pytest.raises(EvaluationError, match="cell arithmetic-long"):
            check_report(found, Report(reported, PROMPT_HASH, {}))
    with pytest.raises(EvaluationError, match="hash of its prompts"):
        check_report(found, Report(0.75, lighteval_prompt_hash(["3+4=?\n"]), {}))


@pytest.mark.parametrize(
    ("name", "folder", "questions", "published", "ours"),
    [("math", "math500", 500, "3ceaaa", "3ceaaade5cf43911"), ("aime24", "aime24", 30, "84ff40", "84ff409b6bbf7cc0")],
)
@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the published problem sets are not here")
def test_prompts_of_published_sets_are_those_that_were_published(name, folder, questions, published, ours):
    """By lighteval's own hash of all prompts, of whose 16 digits six were published."""
    problem = problem_set(DataParams(problem_set=name, source=str(SHARED_DATA / folder), template="r1_boxed"))
    rows = problem.test()
    assert len(rows) == questions
    found = lighteval_prompt_hash([problem.prompt(row.question) for row in rows])
    assert found == ours and found.startswith(published)
    assert found == lighteval_prompt_hash([problem.prompt(row.question) for row in reversed(rows)])
    assert found != lighteval_prompt_hash([problem.prompt(row.question) for row in rows[1:]])


def test_details_round_trip(tmp_path):
    judged = with_lighteval(graded(), ["correct", "wrong", "timeout", "wrong"])
    flat = [sample for row in judged for sample in row]
    write_details(tmp_path / "details.parquet", flat)
    assert read_details(tmp_path / "details.parquet") == flat
    assert by_question(flat) == judged


def test_score_round_trip():
    for found in (
        score(graded()),
        score(with_lighteval(graded(), ["correct"] * 4)),
        score([row[:1] for row in graded()][:1]),
    ):
        assert CellScore.from_json(found.to_json()) == found
    for text in ("", "[]", "{}", found.to_json().replace('"seed"', '"sead"')):
        with pytest.raises(DataError, match="not the JSON of an evaluated cell"):
            CellScore.from_json(text)
