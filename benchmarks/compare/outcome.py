"""What a comparison says: accuracy at the end, costs of fixed accuracies, and differences paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.stats import t

from benchmarks.compare.runs import Run

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its two-sided 95 % interval by Student's t over seeds; NaN bounds where there is one seed."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def interval(values: Sequence[float]) -> Interval:
    """Mean of independent values with its interval."""
    array = np.asarray(values, float)
    mean = float(array.mean())
    if len(array) < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5)
    return Interval(mean, mean - half, mean + half)


def cost_to(run: Run, accuracy: float, axis: str = "tokens") -> float | None:
    """Tokens, or ``axis`` "seconds", after which a run had that accuracy; None where it never had.

    The curve is smoothed by the non-decreasing fit of least weighted squares, and read between its steps linearly. A
    run that learns and falls back has the fit's level of the whole, not its highest point.
    """
    fit = isotonic_regression(run.accuracy, weights=run.weights).x
    above = np.flatnonzero(fit >= accuracy)
    if not len(above):
        return None
    cost, first = getattr(run, axis), int(above[0])
    if first == 0:
        return float(cost[0])
    share = (accuracy - fit[first - 1]) / (fit[first] - fit[first - 1])
    return float(cost[first - 1] + share * (cost[first] - cost[first - 1]))


def paired(ours: Sequence[Run], theirs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Runs of equal seed. Raises ValueError where one has no partner."""
    by_seed = {run.seed: run for run in theirs}
    if {run.seed for run in ours} != by_seed.keys():
        raise ValueError("the runs do not have the same seeds")
    return [(run, by_seed[run.seed]) for run in ours]


def difference(ours: Sequence[Run], theirs: Sequence[Run]) -> Interval:
    """Difference of the accuracies at the end, ours less theirs."""
    return interval([a.end - b.end for a, b in paired(ours, theirs)])


def quotient(ours: Sequence[Run], theirs: Sequence[Run], accuracy: float, axis: str = "tokens") -> Interval | None:
    """Our cost to an accuracy over theirs: the geometric mean and its interval; None where a run never had it."""
    costs = [(cost_to(a, accuracy, axis), cost_to(b, accuracy, axis)) for a, b in paired(ours, theirs)]
    if any(a is None or b is None or a <= 0 or b <= 0 for a, b in costs):
        return None
    logs = interval([float(np.log(a / b)) for a, b in costs if a is not None and b is not None])
    return Interval(*np.exp([logs.mean, logs.low, logs.high]).tolist())


def best_rates(runs: Sequence[Run]) -> dict[str, float]:
    """The learning rate of each algorithm with the highest mean accuracy at the end, the lower of equal ones."""
    means: dict[str, dict[float, float]] = {}
    for name, rate in sorted({(run.algorithm, run.learning_rate) for run in runs}):
        ends = [run.end for run in runs if (run.algorithm, run.learning_rate) == (name, rate)]
        means.setdefault(name, {})[rate] = float(np.mean(ends))
    return {name: max(rates, key=lambda rate: (rates[rate], -rate)) for name, rates in means.items()}


def mean_curve(runs: Sequence[Run], axis: str, points: int = 40) -> list[tuple[float, float]]:
    """Mean over seeds of the non-decreasing fits, at ``points`` values of ``axis`` that all runs reached."""
    grid = np.linspace(0, min(getattr(run, axis)[-1] for run in runs), points)
    fits = [isotonic_regression(run.accuracy, weights=run.weights).x for run in runs]
    heights = [np.interp(grid, getattr(run, axis), fit) for run, fit in zip(runs, fits, strict=True)]
    return list(zip(grid.tolist(), np.mean(heights, axis=0).tolist(), strict=True))


def by_algorithm(runs: Sequence[Run]) -> Mapping[str, list[Run]]:
    """Runs of each algorithm, in the order they come."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.algorithm, []).append(run)
    return groups
