"""Grading, cells, and the checks between the two environments."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spo_core.config import DataParams, VerifyParams
from spo_core.errors import DataError
from spo_core.evaluate.details import read_details, write_details
from spo_core.evaluate.exchange import Answers
from spo_core.evaluate.result import Cell, Evaluation, EvaluationError
from spo_core.evaluate.scoring import check_prompts, check_stopped, grade_answers, make_cell
from spo_core.problems import problem_set
from spo_core.problems.base import Question
from spo_core.verify import Outcome
from spo_core.verify.verifier import Verifier

PROBLEM = problem_set(DataParams())
VERIFIER = Verifier(VerifyParams())
ROWS = [Question("q0", "3+4", "7"), Question("q1", "9-5", "4")]
ANSWERS = [
    Answers("long", "q1", [5, 6], ["9-5=4\n#### 4", "9-5=4\n"], [8, 5], [True, True]),
    Answers("long", "q0", [4], ["3+4=7\n#### 7", "3+4=7\n#### 7"], [8, 9], [True, False]),
]


def samples():
    return grade_answers(VERIFIER, PROBLEM, ROWS, ANSWERS, contexts=["long"], samples=2)["long"]


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
    answers = [Answers("long", "q0", [4], [completion], [8], [stopped])]
    (((sample,),),) = grade_answers(VERIFIER, PROBLEM, ROWS[:1], answers, contexts=["long"], samples=1).values()
    assert sample.outcome is outcome and sample.correct == (outcome is Outcome.CORRECT)


def test_a_cell_by_hand():
    cell = make_cell(9, samples())
    assert cell == Cell(
        context_length=9,
        questions=2,
        accuracy=0.5,
        standard_error=0.0,
        truncated=0.25,
        no_answer=0.25,
        unparsable=0.0,
        timeout=0.0,
        mean_completion_tokens=7.5,
    )


def test_samples_stand_in_the_order_of_the_questions():
    assert [(s.question_id, s.sample, s.outcome) for row in samples() for s in row] == [
        ("q0", 0, Outcome.CORRECT),
        ("q0", 1, Outcome.TRUNCATED),
        ("q1", 0, Outcome.CORRECT),
        ("q1", 1, Outcome.NO_ANSWER),
    ]
    assert [sample.given for sample in samples()[0]] == ["7", None]  # what was cut off is not graded


@pytest.mark.parametrize(
    "answers",
    [
        ANSWERS[:1],
        [*ANSWERS, ANSWERS[0]],
        [ANSWERS[0], replace(ANSWERS[1], context="short")],
        [ANSWERS[0], replace(ANSWERS[1], completions=["#### 7"])],
    ],
    ids=["missing", "twice", "other context", "too few samples"],
)
def test_incomplete_answers_are_refused(answers):
    with pytest.raises(EvaluationError, match="2 questions with 2 each"):
        grade_answers(VERIFIER, PROBLEM, ROWS, answers, contexts=["long"], samples=2)


def test_prompts_must_be_those_of_training():
    check_prompts(ANSWERS, {"q0": [4], "q1": [5, 6]})
    for expected in ({"q0": [4], "q1": [1, 5, 6]}, {"q0": [4]}):
        with pytest.raises(EvaluationError, match="question q1"):
            check_prompts(ANSWERS, expected)


def test_lighteval_s_own_figure_must_follow_from_the_completions():
    cells = {"long": make_cell(9, samples())}
    check_stopped(cells, {"long": 0.75 + 1e-12})
    for reported in (0.75 + 1e-8, float("nan")):
        with pytest.raises(EvaluationError, match="context long"):
            check_stopped(cells, {"long": reported})


def test_details_round_trip(tmp_path):
    flat = [sample for row in samples() for sample in row]
    write_details(tmp_path / "details.parquet", flat)
    assert read_details(tmp_path / "details.parquet") == flat


def test_evaluation_round_trip():
    evaluation = Evaluation(
        checkpoint="final",
        problem_set="arithmetic",
        samples=2,
        temperature=1.0,
        top_p=0.95,
        seed=3,
        grader="corrected",
        prompt_digest="0" * 64,
        versions={"lighteval": "0.13.0"},
        seconds=1.25,
        generated_tokens=30,
        cells={"long": make_cell(9, samples()), "one": replace(make_cell(9, samples()), standard_error=None)},
    )
    again = Evaluation.from_json(evaluation.to_json())
    assert again == evaluation
    assert list(again.cells) == ["long", "one"]
    for text in ("", "[]", "{}", evaluation.to_json().replace('"seed"', '"sead"')):
        with pytest.raises(DataError, match="not an evaluation"):
            Evaluation.from_json(text)
