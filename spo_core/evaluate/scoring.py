"""From answers to graded samples, from samples to a cell, and the checks that both must pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spo_core.evaluate import statistics
from spo_core.evaluate.details import Sample
from spo_core.evaluate.exchange import Answers
from spo_core.evaluate.result import Cell, EvaluationError
from spo_core.problems.base import ProblemSet, Question
from spo_core.verify import Outcome, Verdict, grade

TOLERANCE = 1e-9


def grade_completion(problem: ProblemSet, completion: str, answer: str, *, stopped: bool) -> Verdict:
    """As ``verify.grade``, but a completion without a stop token is truncated whatever answer it holds."""
    verdict = grade(problem, completion, answer)
    return verdict if stopped else Verdict(Outcome.TRUNCATED, verdict.given)


def grade_answers(
    problem: ProblemSet, rows: Sequence[Question], answers: Sequence[Answers], *, contexts: Sequence[str], samples: int
) -> dict[str, list[list[Sample]]]:
    """Samples (questions, samples) of each context, the questions in the order of ``rows``.

    Raises EvaluationError unless every question has that many completions in every context.
    """
    found = {(row.context, row.question_id): row for row in answers}
    asked = {(context, row.question_id) for context in contexts for row in rows}
    if found.keys() != asked or len(found) != len(answers) or any(len(a.completions) != samples for a in answers):
        raise EvaluationError(
            f"lighteval answered {len(answers)} times, {sum(len(a.completions) for a in answers)} completions; asked "
            f"were {len(asked)} questions with {samples} each"
        )
    return {context: [_grade(problem, row, found[context, row.question_id]) for row in rows] for context in contexts}


def _grade(problem: ProblemSet, row: Question, answers: Answers) -> list[Sample]:
    samples = []
    columns = zip(answers.completions, answers.tokens, answers.stopped, strict=True)
    for number, (completion, tokens, stopped) in enumerate(columns):
        verdict = grade_completion(problem, completion, row.answer, stopped=stopped)
        sample = Sample(row.question_id, answers.context, number, completion, verdict.given, verdict.outcome, tokens)
        samples.append(sample)
    return samples


def make_cell(context_length: int, questions: Sequence[Sequence[Sample]]) -> Cell:
    """The cell of one context from its samples, (questions, samples). Raises ValueError if empty or ragged."""
    means = statistics.question_means([[sample.reward for sample in row] for row in questions])
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


def check_accuracies(cells: Mapping[str, Cell], reported: Mapping[str, float]) -> None:
    """Raise EvaluationError unless lighteval reports for each context the accuracy that its completions have."""
    for context, cell in cells.items():
        if not abs(reported[context] - cell.accuracy) <= TOLERANCE:
            raise EvaluationError(
                f"context {context}: lighteval reports accuracy {reported[context]}, its completions have "
                f"{cell.accuracy}; both environments must grade alike"
            )
