"""Statistics of repeated samples. The unit is the question: samples of one question are not independent.

Bootstrap intervals are expanded percentile intervals (T. Hesterberg, What Teachers Should Know About the Bootstrap, The
American Statistician 69(4), 2015). Plain percentiles are too narrow for few values n: a resample's mean has the
variance with divisor n, not n - 1, and the variance is itself estimated, which Student's t accounts for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy  # loads scipy.stats, which takes a second, where it is first used
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
LEVEL = 0.95
FEWEST_QUESTIONS = 6  # below 6 even the range of n values covers the mean in only 1 - 2^(1 - n) of cases, under 95 %
_CHUNK = 1_000  # resamples that scipy holds in memory at once


@dataclass(frozen=True, slots=True)
class Paired:
    """Difference of two measurements of the same questions, b less a."""

    difference: float
    standard_error: float | None
    """Standard error of the mean paired difference, over questions; None for a single question."""
    interval: tuple[float, float] | None
    """95 % interval of the difference, by a bootstrap over questions; None for fewer than six."""


def question_means(rewards: ArrayLike) -> NDArray[np.float64]:
    """Mean reward of each question, (questions,), from rewards (questions, samples). Raises ValueError if empty."""
    table = np.asarray(rewards, np.float64)
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"rewards must be (questions, samples) and not empty, got shape {table.shape}")
    return table.mean(axis=1)


def mean(values: ArrayLike) -> float:
    """Mean from the exactly rounded sum, so that order does not matter. Raises ValueError if empty."""
    flat = np.asarray(values, np.float64).ravel()
    if flat.size == 0:
        raise ValueError("the mean of nothing is not defined")
    return math.fsum(flat) / flat.size


def standard_error(means: ArrayLike) -> float | None:
    """Standard error of the mean over questions, standard deviation (ddof 1) / sqrt(questions); None for one."""
    flat = np.asarray(means, np.float64).ravel()
    if flat.size < 2:
        return None
    return float(flat.std(ddof=1) / math.sqrt(flat.size))


def bootstrap_interval(correct: ArrayLike, seed: int) -> tuple[float, float] | None:
    """95 % interval of pass@1 on these questions, from rewards of 0 and 1, (questions, samples); None for one sample.

    The samples of each question are resampled with replacement, the questions stay; so it says what sampling again
    would change, not what other questions would. Raises ValueError for a ragged or empty table, and for other rewards.
    """
    table = _zeros_and_ones(correct)
    questions, samples = table.shape
    if samples == 1:
        return None
    # A question with k of n correct resamples to Binomial(n, k/n), and all m of them together to Binomial(mn, k/n).
    rows = np.bincount(table.sum(axis=1).astype(int), minlength=samples + 1)
    chances = np.arange(samples + 1) / samples
    drawn = np.random.default_rng(seed).binomial(rows * samples, chances, (RESAMPLES, samples + 1)).sum(axis=1)
    tail = _expanded_tail(samples, questions * (samples - 1))
    low, high = np.quantile(drawn / (questions * samples), [tail, 1 - tail])
    return float(low), float(high)


def _expanded_tail(count: int, freedom: int) -> float:
    """Share of resamples beyond each end of an expanded percentile interval, for resamples of ``count`` values and a
    variance with ``freedom`` degrees of freedom."""
    return float(scipy.stats.norm.sf(math.sqrt(count / (count - 1)) * scipy.stats.t.isf((1 - LEVEL) / 2, freedom)))


def paired(a: ArrayLike, b: ArrayLike, seed: int) -> Paired:
    """Difference b - a of two measurements of the same questions, from their question means, both (questions,). Raises
    ValueError unless they have one shape and are not empty."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"question means must be (questions,) twice, got shapes {first.shape} and {second.shape}")
    differences = second - first
    interval = None
    if differences.size >= FEWEST_QUESTIONS:
        found = scipy.stats.bootstrap(
            (differences,),
            np.mean,
            n_resamples=RESAMPLES,
            batch=_CHUNK,
            confidence_level=1 - 2 * _expanded_tail(differences.size, differences.size - 1),
            method="percentile",
            random_state=np.random.default_rng(seed),
        ).confidence_interval
        interval = float(found.low), float(found.high)
    return Paired(mean(differences), standard_error(differences), interval)


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p-value of McNemar's exact test on rewards of 0 and 1, both (questions,); 1 where none differs. Raises
    ValueError for other rewards or shapes."""
    first, second = _zeros_and_ones(np.stack([np.asarray(a), np.asarray(b)]))
    won, lost = int((second > first).sum()), int((second < first).sum())
    return float(scipy.stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0


def _zeros_and_ones(rewards: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(rewards, np.float64)
    if table.ndim != 2 or table.size == 0 or not np.isin(table, (0.0, 1.0)).all():
        raise ValueError(f"rewards must be 0 or 1, a table and not empty, got shape {table.shape}")
    return table
