"""Gradient efficiency from per-question gradients, as U-statistics with an error over questions.

With g the gradient of one question's summed surrogate loss at the sampling policy, and T what a question costs, Q
independent questions have a gradient of mean Q E[g] and covariance Q Cov(g). So |E g|² / (tr Cov(g) T) does not depend
on the number of questions: it is the squared signal-to-noise ratio that a unit of cost buys. The cost is tokens or
seconds. Nothing here is biased by noise: squares of means are means over pairs of different questions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MILLION = 1e6
TOLD_APART = 2  # standard errors


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its standard error over questions; NaN where too few questions give none."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ± {self.error:.2g}"


@dataclass(frozen=True, eq=False, slots=True)
class Gradients:
    """Per-question gradients of one candidate, or seeded projections of them that keep inner products.

    ``vectors`` [questions, repeats, width]: each question sampled ``repeats`` times over, at least twice.
    ``tokens`` and ``seconds`` [questions]: mean cost of one of the repeats. ``signal`` bool [questions, repeats]:
    whether anything was trained. ``questions`` names the rows; equal names are equal questions.
    """

    questions: tuple[str, ...]
    vectors: NDArray[np.float32]
    tokens: Floats
    seconds: Floats
    signal: NDArray[np.bool_]

    def __post_init__(self) -> None:
        count, repeats = self.vectors.shape[:2]
        if count < 3 or repeats < 2:
            raise ValueError(f"{count} questions, each sampled {repeats} times: at least 3 and twice are needed")
        if len(set(self.questions)) != count or len(self.tokens) != count or len(self.seconds) != count:
            raise ValueError("one row, one cost and one name a question are needed, and no question twice")


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What :func:`efficiency` measured. Squared lengths are those of the gradient of one question."""

    mean_square: Estimate
    """|E g|²."""
    variance: Estimate
    """tr Cov(g) of one question's gradient, sampled once."""
    within: Estimate
    """Share of the variance that sampling a question again would change."""
    per_token: Estimate
    """Efficiency per million generated tokens."""
    per_second: Estimate
    """Efficiency per second of rollout and update."""
    without_signal: Estimate
    """Share of questions, each sampled once, that train nothing."""
    tokens: float
    seconds: float
    questions: int


def efficiency(gradients: Gradients) -> Efficiency:
    """Measure the efficiency of one candidate; errors by the jackknife over questions."""
    sums = _Sums.of(gradients)

    def estimate(of: Callable[[Floats, Floats, Floats, Floats, Floats], Floats]) -> Estimate:
        return jackknife(lambda left: of(*sums.moments(left)), len(gradients.questions))

    silent = 1.0 - gradients.signal.mean(axis=1)
    return Efficiency(
        mean_square=estimate(lambda signal, *_: signal),
        variance=estimate(lambda signal, square, *_: square - signal),
        within=estimate(lambda signal, square, within, *_: within / (square - signal)),
        per_token=estimate(lambda signal, square, _, tokens, __: MILLION * signal / ((square - signal) * tokens)),
        per_second=estimate(lambda signal, square, _, __, seconds: signal / ((square - signal) * seconds)),
        without_signal=Estimate(float(silent.mean()), float(silent.std(ddof=1) / math.sqrt(len(silent)))),
        tokens=float(gradients.tokens.mean()),
        seconds=float(gradients.seconds.mean()),
        questions=len(gradients.questions),
    )


def cosine(gradients: Gradients, reference: Gradients) -> Estimate:
    """Cosine between E g of a candidate and that of the reference, over the questions both sampled.

    A question is never compared with itself, nor a sample with itself: so what two candidates that are the same
    estimator measure is 1 up to the error given. It may exceed 1 by noise. NaN where the length of either mean is not
    told from zero.
    """
    shared = [q for q in gradients.questions if q in set(reference.questions)]
    if len(shared) < 3:
        return Estimate(math.nan, math.nan)
    a, b = (_summed(g, shared) for g in (gradients, reference))
    count = len(shared)
    totals = {"aa": _pairs(a, a), "bb": _pairs(b, b), "ab": _pairs(a, b)}
    repeats = (gradients.vectors.shape[1], reference.vectors.shape[1])
    scale = {"aa": repeats[0] ** 2, "bb": repeats[1] ** 2, "ab": repeats[0] * repeats[1]}

    def mean(key: str, left: Floats) -> Floats:
        out = np.isfinite(left)
        n = count - out.astype(int)
        without = np.where(out, totals[key].each[np.nan_to_num(left).astype(int)], 0.0)
        return (totals[key].total - without) / (n * (n - 1) * scale[key])

    for key in ("aa", "bb"):
        if not _is_positive(jackknife(partial(mean, key), count)):
            return Estimate(math.nan, math.nan)
    return jackknife(lambda left: mean("ab", left) / np.sqrt(mean("aa", left) * mean("bb", left)), count)


def gain(ours: Gradients, theirs: Gradients, cost: Literal["tokens", "seconds"]) -> Estimate:
    """Efficiency of ``ours`` over that of ``theirs``; NaN where that of ``theirs`` is not told from zero.

    A question that both asked is left out of both, so the error is that of the comparison: small where they credit the
    same trees, that of two samples where they share no question.
    """
    found = efficiency(theirs)
    if not _is_positive(found.per_token if cost == "tokens" else found.per_second):
        return Estimate(math.nan, math.nan)
    union = list(dict.fromkeys([*ours.questions, *theirs.questions]))
    sides = []
    for gradients in (ours, theirs):
        row = {question: float(i) for i, question in enumerate(gradients.questions)}
        sides.append((_Sums.of(gradients), np.array([row.get(question, math.nan) for question in union])))

    def of(left: Floats) -> Floats:
        out, index = np.isfinite(left), np.nan_to_num(left).astype(int)
        per_cost = []
        for sums, rows in sides:
            signal, square, _, tokens, seconds = sums.moments(np.where(out, rows[index], math.nan))
            per_cost.append(signal / ((square - signal) * (tokens if cost == "tokens" else seconds)))
        return per_cost[0] / per_cost[1]

    return jackknife(of, len(union))


def _is_positive(found: Estimate) -> bool:
    return found.value > TOLD_APART * found.error


@dataclass(frozen=True, eq=False, slots=True)
class _Pairs:
    """Inner products of all ordered pairs of different questions: their ``total``, and those of ``each`` question."""

    total: float
    each: Floats


def _summed(gradients: Gradients, questions: list[str]) -> NDArray[np.float32]:
    """Sum over repeats, [questions, width], in the order of ``questions``."""
    row = {question: i for i, question in enumerate(gradients.questions)}
    return gradients.vectors[[row[q] for q in questions]].sum(axis=1)


def _pairs(a: NDArray[np.float32], b: NDArray[np.float32]) -> _Pairs:
    """Sums over i ≠ j of a_i · b_j; ``each`` of question q has the terms with i = q or j = q."""
    all_a, all_b = a.sum(axis=0, dtype=np.float64), b.sum(axis=0, dtype=np.float64)
    own = np.einsum("qw,qw->q", a, b, dtype=np.float64)
    each = a.astype(np.float64) @ all_b + b.astype(np.float64) @ all_a - 2 * own
    return _Pairs(float(all_a @ all_b - own.sum()), each)


@dataclass(frozen=True, eq=False, slots=True)
class _Sums:
    """Sums over questions from which every moment follows, with or without one question."""

    pairs: _Pairs
    squares: Floats
    """Mean square over repeats, [questions]."""
    within: Floats
    """Unbiased variance over repeats, [questions]."""
    tokens: Floats
    seconds: Floats
    repeats: int

    @classmethod
    def of(cls, gradients: Gradients) -> _Sums:
        vectors = gradients.vectors
        repeats, summed = vectors.shape[1], vectors.sum(axis=1)
        squares = np.einsum("qrw,qrw->q", vectors, vectors, dtype=np.float64) / repeats
        of_mean = np.einsum("qw,qw->q", summed, summed, dtype=np.float64) / repeats**2
        within = (squares - of_mean) * repeats / (repeats - 1)
        return cls(_pairs(summed, summed), squares, within, gradients.tokens, gradients.seconds, repeats)

    def moments(self, left: Floats) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        """|E g|², E |g|², within-question variance, tokens and seconds, each [len(left)]; ``left`` names the question
        that is left out, NaN none."""
        out, index = np.isfinite(left), np.nan_to_num(left).astype(int)
        n = len(self.squares) - out.astype(int)

        def mean(values: Floats) -> Floats:
            return (values.sum() - np.where(out, values[index], 0.0)) / n

        signal = (self.pairs.total - np.where(out, self.pairs.each[index], 0.0)) / (n * (n - 1) * self.repeats**2)
        return signal, mean(self.squares), mean(self.within), mean(self.tokens), mean(self.seconds)


def jackknife(of: Callable[[Floats], Floats], count: int) -> Estimate:
    """``of`` maps left-out questions to estimates; NaN leaves none out. NaN where it divides by zero, as it does where
    no question has a gradient.

    The error of a mean over pairs is too wide where noise is far above the mean, by a factor of sqrt(2) at most (Efron
    and Stein 1981), and right where it is not.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(of(np.array([math.nan]))[0])
        without = of(np.arange(count, dtype=np.float64))
        error = math.sqrt((count - 1) / count * float(((without - without.mean()) ** 2).sum()))
    return Estimate(value, error)
