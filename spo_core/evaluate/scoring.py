"""Turns answers into graded samples and samples into a score, and checks both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import xxhash

from spo_core.evaluate import cross_check, uncertainty
from spo_core.evaluate.lighteval.details import Sample
from spo_core.evaluate.lighteval.exchange import Answers, Report
from spo_core.evaluate.result import CellScore, EvaluationError, Protocol, Tokens
from spo_core.evaluate.suite import Cell
from spo_core.problems.base import ProblemSet, Question
from spo_core.verify import Outcome, Verdict
from spo_core.verify.verifier import Verifier

TOLERANCE = 1e-9


def grade_answers(
    verifier: Verifier, problem: ProblemSet, rows: Sequence[Question], answers: Sequence[Answers], *, samples: int
) -> list[list[Sample]]:
    """Grade all completions; returns (questions, samples) in the order of ``rows``, without lighteval's verdicts.

    A completion that did not stop is truncated, whatever answer it holds. Raises EvaluationError unless every question
    has ``samples`` completions.
    """
    found = {row.question_id: row for row in answers}
    gold = {row.question_id: row.answer for row in rows}
    if found.keys() != gold.keys() or len(found) != len(answers) or any(len(a.completions) != samples for a in answers):
        raise EvaluationError(
            f"lighteval answered {len(answers)} times, {sum(len(a.completions) for a in answers)} completions; asked "
            f"were {len(gold)} questions with {samples} each"
        )
    ordered = [found[row.question_id] for row in rows]
    stated = [
        (text, gold[row.question_id])
        for row in ordered
        for text, stopped in zip(row.completions, row.stopped, strict=True)
        if stopped
    ]
    verdicts = iter(verifier.grade(problem, stated))
    truncated = Verdict(Outcome.TRUNCATED, None)
    graded = []
    for row in ordered:
        columns = zip(row.completions, row.tokens, row.stopped, strict=True)
        graded.append(
            [
                Sample(
                    question_id=row.question_id,
                    sample=number,
                    completion=text,
                    gold=gold[row.question_id],
                    given=(verdict := next(verdicts) if stopped else truncated).given,
                    outcome=verdict.outcome,
                    lighteval=None,
                    tokens=tokens,
                )
                for number, (text, tokens, stopped) in enumerate(columns)
            ]
        )
    return graded


def with_lighteval(questions: Sequence[Sequence[Sample]], verdicts: Sequence[str]) -> list[list[Sample]]:
    """The samples with lighteval's ``verdicts``, one each in order. Raises EvaluationError where counts differ."""
    asked = sum(len(row) for row in questions)
    if len(verdicts) != asked:
        raise EvaluationError(f"lighteval's metric gave {len(verdicts)} verdicts on {asked} completions")
    found = iter(verdicts)
    return [[replace(sample, lighteval=next(found)) for sample in row] for row in questions]


def score_cell(
    cell: Cell,
    questions: Sequence[Sequence[Sample]],
    protocol: Protocol,
    *,
    majority: float,
    prompt_hash: str,
    model: str,
    model_digest: str,
    suite: str,
    seed: int,
    seconds: float,
) -> CellScore:
    """Score of a cell from its samples, (questions, samples). Raises ValueError where they are empty or ragged."""
    correct = [[float(sample.correct) for sample in row] for row in questions]
    means = uncertainty.question_means(correct)
    flat = [sample for row in questions for sample in row]

    def share(outcome: Outcome) -> float:
        return uncertainty.mean([sample.outcome is outcome for sample in flat])

    return CellScore(
        model=model,
        model_digest=model_digest,
        suite=suite,
        cell=cell.name,
        context=cell.context,
        accuracy=uncertainty.mean(means),
        standard_error=uncertainty.standard_error(means),
        interval=uncertainty.bootstrap_interval(correct, seed),
        majority=majority,
        truncated=share(Outcome.TRUNCATED),
        no_answer=share(Outcome.NO_ANSWER),
        unparsable=share(Outcome.UNPARSABLE),
        timeout=share(Outcome.TIMEOUT),
        tokens=count_tokens(flat),
        cross_check=cross_check.summarize(questions),
        protocol=protocol,
        lighteval_prompt_hash=prompt_hash,
        seed=seed,
        seconds=round(seconds, 3),
        generated_tokens=sum(sample.tokens for sample in flat),
    )


def count_tokens(samples: Sequence[Sample]) -> Tokens:
    """Statistics of the samples' lengths. Raises ValueError where there is no sample."""
    counts = [sample.tokens for sample in samples]
    of_correct = [sample.tokens for sample in samples if sample.correct]
    return Tokens(
        mean=uncertainty.mean(counts),
        median=float(np.median(counts)),
        p90=float(np.percentile(counts, 90)),
        most=max(counts),
        mean_correct=uncertainty.mean(of_correct) if of_correct else None,
    )


def lighteval_prompt_hash(prompts: Sequence[str]) -> str:
    """lighteval's hash of all prompts, ``hash_full_prompts`` of all tasks in its published results."""
    each = sorted(xxhash.xxh64(prompt).hexdigest() for prompt in prompts)
    of_task = xxhash.xxh64("".join(each)).hexdigest()
    return xxhash.xxh64(of_task).hexdigest()


def check_prompts(answers: Sequence[Answers], expected: Mapping[str, Sequence[int]]) -> None:
    """Raise EvaluationError unless every prompt's token ids are the ``expected`` ones of training, by question id."""
    for row in answers:
        fed, right = row.prompt_ids, list(expected.get(row.question_id, ()))
        if fed != right:
            at = next((i for i, pair in enumerate(zip(fed, right, strict=False)) if pair[0] != pair[1]), len(right))
            raise EvaluationError(
                f"question {row.question_id}: from token {at} of the prompt on, lighteval fed the policy "
                f"{fed[at : at + 8]} and training feeds it {right[at : at + 8]}; use the same transformers in both"
            )


def check_report(score: CellScore, report: Report) -> None:
    """Raise EvaluationError unless lighteval's report follows from its completions and our prompts."""
    if not abs(report.stopped - (1 - score.truncated)) <= TOLERANCE:
        raise EvaluationError(
            f"cell {score.cell}: lighteval reports that {report.stopped} of the completions stopped, "
            f"{1 - score.truncated} of those it handed over did"
        )
    if report.prompt_hash != score.lighteval_prompt_hash:
        raise EvaluationError(
            f"cell {score.cell}: lighteval's hash of its prompts is {report.prompt_hash}, that of training's "
            f"{score.lighteval_prompt_hash}"
        )
