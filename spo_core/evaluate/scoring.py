"""From answers to graded samples, from samples to a cell, and the checks that both must pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spo_core.evaluate import statistics
from spo_core.evaluate.details import Sample
from spo_core.evaluate.exchange import Answers
from spo_core.evaluate.result import Cell, EvaluationError
from spo_core.problems.base import ProblemSet, Question
from spo_core.verify import Outcome, Verdict
from spo_core.verify.verifier import Verifier

TOLERANCE = 1e-9


def grade_answers(
    verifier: Verifier,
    problem: ProblemSet,
    rows: Sequence[Question],
    answers: Sequence[Answers],
    *,
    contexts: Sequence[str],
    samples: int,
) -> dict[str, list[list[Sample]]]:
    """Samples (questions, samples) of each context, the questions in the order of ``rows``.

    A completion that did not stop is truncated, whatever answer it holds. Raises EvaluationError unless every question
    has that many completions in every context.
    """
    found = {(row.context, row.question_id): row for row in answers}
    asked = {(context, row.question_id) for context in contexts for row in rows}
    if found.keys() != asked or len(found) != len(answers) or any(len(a.completions) != samples for a in answers):
        raise EvaluationError(
            f"lighteval answered {len(answers)} times, {sum(len(a.completions) for a in answers)} completions; asked "
            f"were {len(asked)} questions with {samples} each"
        )
    gold = {row.question_id: row.answer for row in rows}
    stated = [
        (text, gold[row.question_id])
        for row in answers
        for text, stopped in zip(row.completions, row.stopped, strict=True)
        if stopped
    ]
    verdicts = iter(verifier.grade(problem, stated))
    truncated = Verdict(Outcome.TRUNCATED, None)
    graded: dict[tuple[str, str], list[Sample]] = {}
    for row in answers:
        columns = zip(row.completions, row.tokens, row.stopped, strict=True)
        graded[row.context, row.question_id] = [
            Sample(
                row.question_id,
                row.context,
                number,
                text,
                (verdict := next(verdicts) if stopped else truncated).given,
                verdict.outcome,
                tokens,
            )
            for number, (text, tokens, stopped) in enumerate(columns)
        ]
    return {context: [graded[context, row.question_id] for row in rows] for context in contexts}


def make_cell(context_length: int, questions: Sequence[Sequence[Sample]]) -> Cell:
    """The cell of one context from its samples, (questions, samples). Raises ValueError if empty or ragged."""
    means = statistics.question_means([[float(sample.correct) for sample in row] for row in questions])
    flat = [sample for row in questions for sample in row]

    def share(outcome: Outcome) -> float:
        return statistics.mean([sample.outcome is outcome for sample in flat])

    return Cell(
        context_length=context_length,
        questions=len(questions),
        accuracy=statistics.mean(means),
        standard_error=statistics.standard_error(means),
        truncated=share(Outcome.TRUNCATED),
        no_answer=share(Outcome.NO_ANSWER),
        unparsable=share(Outcome.UNPARSABLE),
        timeout=share(Outcome.TIMEOUT),
        mean_completion_tokens=statistics.mean([sample.tokens for sample in flat]),
    )


def check_prompts(answers: Sequence[Answers], expected: Mapping[str, Sequence[int]]) -> None:
    """Raise EvaluationError unless the policy was fed exactly the token ids that training feeds it, by question id."""
    for row in answers:
        fed, right = row.prompt_ids, list(expected.get(row.question_id, ()))
        if fed != right:
            at = next((i for i, pair in enumerate(zip(fed, right, strict=False)) if pair[0] != pair[1]), len(right))
            raise EvaluationError(
                f"question {row.question_id}: from token {at} of the prompt on, lighteval fed the policy "
                f"{fed[at : at + 8]} and training feeds it {right[at : at + 8]}; use the same transformers in both"
            )


def check_stopped(cells: Mapping[str, Cell], reported: Mapping[str, float]) -> None:
    """Raise EvaluationError unless lighteval's own figure, the share that stopped, follows from its completions."""
    for context, cell in cells.items():
        if not abs(reported[context] - (1 - cell.truncated)) <= TOLERANCE:
            raise EvaluationError(
                f"context {context}: lighteval reports that {reported[context]} of the completions stopped, "
                f"{1 - cell.truncated} of those it handed over did"
            )
