"""Grades completions a second time by lighteval's metric, in killable workers of its environment."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from types import TracebackType
from typing import Literal

from spo_core.evaluate import uncertainty
from spo_core.evaluate.lighteval.details import Sample
from spo_core.evaluate.result import CrossCheck
from spo_core.problems.base import ProblemSet
from spo_core.verify import Outcome
from spo_core.verify.pool import WorkerPool

Kind = Literal["latex", "expr"]
SECONDS = 30.0  # for one completion; lighteval's own limits, 5 s a step, do not interrupt a long call of C


def metric_kind(problem: ProblemSet) -> Kind | None:
    """Whether lighteval reads gold answers of a problem set as LaTeX or expressions; None where it has no metric."""
    if problem.rule != "math":
        return None
    return "latex" if problem.template.answer == "boxed" else "expr"


class LightevalMetric:
    """lighteval's metric, as a context manager: in workers that ``Lighteval`` forks at the other end of ``served``.
    ``seconds`` is the time limit of one completion."""

    def __init__(self, served: socket.socket, workers: int, seconds: float = SECONDS) -> None:
        self._pool = WorkerPool(workers, seconds, served=served)

    def grade(self, kind: Kind, answers: Sequence[tuple[str, str]]) -> list[str]:
        """Verdicts on (completion, gold answer) pairs: correct, wrong, or timeout where the metric took too long, too
        much memory, or raised an error.

        Equal pairs are graded once. Raises GradingError where workers cannot be started.
        """
        tasks = [(kind, text, f"${gold}$" if kind == "latex" else gold) for text, gold in answers]
        distinct = list(dict.fromkeys(tasks))
        found = dict(zip(distinct, self._pool.compare(distinct), strict=True))
        return [found[task].value for task in tasks]

    def __enter__(self) -> LightevalMetric:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._pool.close()


def summarize(questions: Sequence[Sequence[Sample]]) -> CrossCheck | None:
    """Compare the two gradings of samples, (questions, samples); None where lighteval graded none of them.

    Raises ValueError where lighteval graded only some of them, or where the samples are empty or ragged.
    """
    flat = [sample for row in questions for sample in row]
    graded = [sample for sample in flat if sample.lighteval is not None]
    if flat and not graded:
        return None
    if len(graded) < len(flat):
        raise ValueError(f"lighteval graded {len(graded)} of {len(flat)} completions")
    means = uncertainty.question_means([[float(s.lighteval == "correct") for s in row] for row in questions])
    differ = [sample for sample in flat if sample.disagrees]
    return CrossCheck(
        accuracy=uncertainty.mean(means),
        standard_error=uncertainty.standard_error(means),
        disagreements=len(differ),
        truncated_disagreements=sum(sample.outcome is Outcome.TRUNCATED for sample in differ),
        timeouts=sum(sample.lighteval == "timeout" for sample in flat),
    )
