"""Grades completions: plain answers at once, all others in worker processes, each pair of answers once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from types import TracebackType

from spo_core.config import GraderName, VerifyParams
from spo_core.errors import GradingError
from spo_core.problems.base import ProblemSet
from spo_core.verify.exact.grader import quick
from spo_core.verify.outcome import Outcome, Verdict
from spo_core.verify.pool import Task, WorkerPool
from spo_core.verify.reward import Rewards
from spo_core.verify.rules import QUICK, RULES, extract, rule

REMEMBERED = 200_000  # most pairs of answers whose outcome is kept


class Verifier:
    """Grades the completions of a run; ``close`` it, or use it as a context.

    A comparison that timed out is remembered like any other, so that an answer which many siblings give costs its time
    once. Outcomes are those of ``params.grader``; the time limit apart, they depend on the texts alone.
    """

    def __init__(self, params: VerifyParams) -> None:
        self.params = params
        self._pool = WorkerPool(params.workers, params.seconds)
        self.rewards = Rewards(params)
        self._known: dict[Task, Outcome] = {}

    def grade(
        self, problem: ProblemSet, answers: Sequence[tuple[str, str]], grader: GraderName | None = None
    ) -> list[Verdict]:
        """Give a verdict on each (completion, gold answer), by another ``grader`` than the run's where one is given; a
        stop string and what follows it are not read.

        Raises GradingError where no worker can be started.
        """
        grader = grader or self.params.grader
        name = rule(problem, grader)
        texts = [problem.template.before_stop(completion) for completion, _ in answers]
        given = [extract(problem, grader, text) for text in texts]
        tasks = [(name, found, gold) for found, (_, gold) in zip(given, answers, strict=True) if found is not None]
        compared = iter(self.compare(tasks))
        verdicts = []
        for found, text in zip(given, texts, strict=True):
            outcome = Outcome.NO_ANSWER if found is None else next(compared)
            if grader != "exact" and text.count("####") > 1:
                outcome = Outcome.SEVERAL_ANSWERS
            verdicts.append(Verdict(outcome, found))
        return verdicts

    def compare(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Compare by (rule, answer given, gold answer); returns outcomes in order. Raises KeyError for an unknown
        rule."""
        for name in {name for name, _, _ in tasks} - RULES.keys():
            raise KeyError(name)
        if len(self._known) > REMEMBERED:
            self._known.clear()
        hard = []
        for task in dict.fromkeys(tasks):
            if task not in self._known:
                outcome = _at_once(task)
                if outcome is None:
                    hard.append(task)
                else:
                    self._known[task] = outcome
        self._known.update(zip(hard, self._pool.compare(hard), strict=True))
        return [self._known[task] for task in tasks]

    def close(self) -> None:
        self._pool.close()
        self.rewards.close()

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()


def _at_once(task: Task) -> Outcome | None:
    name, given, gold = task
    if name in QUICK:
        return RULES[name](given, gold)
    return quick(given, gold) if name == "math" else None


def failed_share(outcomes: Iterable[Outcome]) -> float:
    """Compute the share of graded responses whose comparison failed; 0 where none was graded."""
    counts = Counter(outcomes)
    graded = counts.total() - counts[Outcome.TRUNCATED]
    return (counts[Outcome.UNPARSABLE] + counts[Outcome.TIMEOUT]) / graded if graded else 0.0


def check_failures(outcomes: Sequence[Outcome], limit: float, where: str) -> None:
    """Raise GradingError where the comparison of too many responses failed: their zeros would be trained on."""
    share = failed_share(outcomes)
    if share > limit:
        counts = Counter(outcomes)
        raise GradingError(
            f"{where}: {share:.0%} of the graded responses were unparsable ({counts[Outcome.UNPARSABLE]}) or timed out "
            f"({counts[Outcome.TIMEOUT]}), more than verify.max_failed_share {limit:g}; read some before training on"
        )
