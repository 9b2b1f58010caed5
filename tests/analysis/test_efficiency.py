"""Efficiency and cosine: against loops over pairs of questions, and on Gaussian gradients whose moments are known."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from itertools import permutations

import numpy as np
import pytest

from spo_core.analysis.efficiency import Efficiency, Estimate, Gradients, cosine, efficiency, gain

ESTIMATES = ("mean_square", "variance", "within", "per_token", "per_second", "without_signal")


def gradients(
    rng: np.random.Generator,
    *,
    questions: int = 12,
    repeats: int = 2,
    mean: np.ndarray | None = None,
    between: float = 1.0,
    within: float = 1.0,
    width: int = 6,
    first: int = 0,
) -> Gradients:
    """Gaussian: a question's own mean around ``mean`` (variance ``between`` a coordinate), samples around that."""
    mean = np.ones(width) if mean is None else mean
    own = mean + math.sqrt(between) * rng.normal(size=(questions, 1, len(mean)))
    vectors = own + math.sqrt(within) * rng.normal(size=(questions, repeats, len(mean)))
    return Gradients(
        tuple(f"q{first + i}" for i in range(questions)),
        vectors.astype(np.float32),
        rng.integers(50, 90, questions).astype(float),
        rng.uniform(1, 2, questions),
        rng.random((questions, repeats)) < 0.7,
    )


def without(given: Gradients, *rows: int) -> Gradients:
    kept = [i for i in range(len(given.questions)) if i not in rows]
    return Gradients(
        tuple(given.questions[i] for i in kept),
        given.vectors[kept],
        given.tokens[kept],
        given.seconds[kept],
        given.signal[kept],
    )


def dot(a: np.ndarray, b: np.ndarray) -> float:
    return float(sum(float(x) * float(y) for x, y in zip(a, b, strict=True)))


def naive(given: Gradients) -> dict[str, float]:
    """Every number from its definition, pair by pair."""
    count, repeats = given.vectors.shape[:2]
    v = given.vectors.astype(np.float64)
    pairs = [
        dot(v[i, r], v[j, s]) for i, j in permutations(range(count), 2) for r in range(repeats) for s in range(repeats)
    ]
    signal = float(np.mean(pairs))
    square = float(np.mean([dot(v[i, r], v[i, r]) for i in range(count) for r in range(repeats)]))
    inner = float(np.mean([v[i].var(axis=0, ddof=1).sum() for i in range(count)]))
    return {
        "mean_square": signal,
        "variance": square - signal,
        "within": inner / (square - signal),
        "per_token": 1e6 * signal / (square - signal) / given.tokens.mean(),
        "per_second": signal / (square - signal) / given.seconds.mean(),
        "without_signal": 1 - given.signal.mean(),
    }


def naive_cosine(a: Gradients, b: Gradients) -> float:
    shared = sorted(set(a.questions) & set(b.questions))
    x, y = (g.vectors.astype(np.float64).mean(axis=1)[[g.questions.index(q) for q in shared]] for g in (a, b))
    pairs = list(permutations(range(len(shared)), 2))
    across, own, theirs = (np.mean([dot(u[i], w[j]) for i, j in pairs]) for u, w in ((x, y), (x, x), (y, y)))
    return float(across / math.sqrt(own * theirs))


def jackknifed(values: list[float]) -> float:
    """Standard error from estimates that each leave one question out."""
    n = len(values)
    return math.sqrt((n - 1) / n * sum((v - np.mean(values)) ** 2 for v in values))


@pytest.mark.parametrize(("questions", "repeats"), [(3, 2), (7, 2), (9, 4)])
def test_numbers_are_those_of_a_loop_over_pairs_and_errors_leave_one_question_out(questions, repeats):
    given = gradients(np.random.default_rng(0), questions=questions, repeats=repeats)
    found, expected = efficiency(given), naive(given)
    if questions > 3:
        smaller = [naive(without(given, i)) for i in range(questions)]
    for name in ESTIMATES:
        own = getattr(found, name)
        assert own.value == pytest.approx(expected[name], rel=1e-5), name
        if questions > 3 and name != "without_signal":
            assert own.error == pytest.approx(jackknifed([s[name] for s in smaller]), rel=1e-4), name
    assert found.without_signal.error == pytest.approx(
        np.std(1 - given.signal.mean(axis=1), ddof=1) / math.sqrt(questions)
    )
    assert (found.tokens, found.seconds, found.questions) == (given.tokens.mean(), given.seconds.mean(), questions)


def test_the_cosine_is_that_of_a_loop_and_its_error_leaves_one_question_out():
    """Over the questions both have, whatever their order and the number of repeats."""
    rng = np.random.default_rng(1)
    a, b = gradients(rng, questions=9, between=0.1), gradients(rng, questions=8, repeats=3, between=0.1, first=3)
    order = rng.permutation(8)
    b = Gradients(
        tuple(b.questions[i] for i in order), b.vectors[order], b.tokens[order], b.seconds[order], b.signal[order]
    )
    found = cosine(a, b)
    assert found.value == pytest.approx(naive_cosine(a, b), rel=1e-5)
    shared = [a.questions.index(q) for q in a.questions if q in b.questions]
    assert len(shared) == 6
    assert found.error == pytest.approx(jackknifed([naive_cosine(without(a, i), b) for i in shared]), rel=1e-4)


@pytest.mark.parametrize(("mean", "widest"), [(2.0, 1.15), (0.3, math.sqrt(2) * 1.1)])
def test_squares_are_unbiased_and_the_stated_errors_cover(mean, widest):
    """|E g|² = 6 mean², tr Cov = 6 · 3, a third of it within questions. Where noise is far above the mean the jackknife
    of a mean over pairs is too wide, by a factor of the square root of 2 at most, and never too narrow."""
    rng = np.random.default_rng(2)
    drawn = [efficiency(gradients(rng, questions=20, mean=np.full(6, mean), between=2, within=1)) for _ in range(400)]
    for name, true in (("mean_square", 6 * mean**2), ("variance", 18.0)):
        values = np.array([getattr(d, name).value for d in drawn])
        errors = np.array([getattr(d, name).error for d in drawn])
        assert abs(values.mean() - true) < 3 * values.std() / math.sqrt(len(values)), name
        assert 0.9 < math.sqrt((errors**2).mean()) / values.std() < widest, name
        assert 0.88 < np.mean(np.abs(values - true) < 2 * errors) <= 1, name
    assert np.mean([d.within.value for d in drawn]) == pytest.approx(1 / 3, abs=0.02)


def test_stated_errors_of_the_efficiency_cover_it():
    rng = np.random.default_rng(3)
    drawn = [efficiency(gradients(rng, questions=60, mean=np.full(6, 0.7), width=6)) for _ in range(400)]
    true = 6 * 0.49 / 12
    per_token = [Estimate(d.per_token.value * d.tokens / 1e6, d.per_token.error * d.tokens / 1e6) for d in drawn]
    assert np.mean([e.value for e in per_token]) == pytest.approx(true, rel=0.06)
    assert 0.88 < np.mean([abs(e.value - true) < 2 * e.error for e in per_token]) < 0.99


def test_two_samples_of_one_estimator_point_the_same_way_and_a_turned_one_does_not():
    rng, mean = np.random.default_rng(4), np.array([1.0, 1, 0, 0, 0, 0])
    same, turned = [], []
    for _ in range(100):
        a, b = (gradients(rng, questions=40, mean=mean) for _ in range(2))
        same.append(cosine(a, b))
        turned.append(cosine(a, gradients(rng, questions=40, mean=np.array([1.0, 0, 1, 0, 0, 0]))))
    known = [e for e in same if math.isfinite(e.value)]
    assert len(known) > 90
    assert 0.85 < np.mean([abs(e.value - 1) < 2 * e.error for e in known]) <= 1
    assert np.mean([e.value for e in turned if math.isfinite(e.value)]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([e.value < 1 - 2 * e.error for e in turned]) > 0.7, "told from 1"


@pytest.mark.parametrize("seed", range(4))
def test_the_cosine_is_not_known_where_a_mean_is_noise(seed):
    """Also where the squared lengths of both come out below zero, whose product is not."""
    rng = np.random.default_rng(seed)
    noise = [gradients(rng, questions=30, mean=np.zeros(6)) for _ in range(2)]
    lengths = [efficiency(n).mean_square for n in noise]
    assert any(length.value < 2 * length.error for length in lengths)
    assert math.isnan(cosine(*noise).value)


def test_the_cosine_of_too_few_shared_questions_is_not_known():
    rng = np.random.default_rng(5)
    assert math.isnan(cosine(gradients(rng), gradients(rng, first=10)).value)
    sharp = [gradients(rng, between=0.01, within=0.01, first=first) for first in (0, 9, 10)]
    assert math.isfinite(cosine(sharp[0], sharp[1]).value) and math.isnan(cosine(sharp[0], sharp[2]).value)


def numbers(found: Efficiency) -> dict[str, tuple[float, float]]:
    return {f: (getattr(found, f).value, getattr(found, f).error) for f in ESTIMATES}


def test_what_changes_no_efficiency():
    """Scale of the gradients, order of questions and repeats, a rotation; twice the cost halves it."""
    rng = np.random.default_rng(6)
    given = gradients(rng)
    base = numbers(efficiency(given))
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0].astype(np.float32)
    order = rng.permutation(12)
    shuffled = Gradients(
        tuple(given.questions[i] for i in order),
        given.vectors[order][:, ::-1],
        given.tokens[order],
        given.seconds[order],
        given.signal[order],
    )
    for other in (shuffled, replace(given, vectors=given.vectors @ turn)):
        assert numbers(efficiency(other)) == {k: pytest.approx(v, rel=1e-4) for k, v in base.items()}
    scaled = numbers(efficiency(replace(given, vectors=given.vectors * np.float32(8))))
    for name in ("within", "per_token", "per_second", "without_signal"):
        assert scaled[name] == pytest.approx(base[name], rel=1e-5)
    for name in ("mean_square", "variance"):
        assert scaled[name] == pytest.approx([64 * v for v in base[name]], rel=1e-5)
    dearer = numbers(efficiency(replace(given, tokens=2 * given.tokens, seconds=4 * given.seconds)))
    assert dearer["per_token"] == pytest.approx([v / 2 for v in base["per_token"]])
    assert dearer["per_second"] == pytest.approx([v / 4 for v in base["per_second"]])
    assert cosine(given, given).value == pytest.approx(cosine(shuffled, given).value)


def test_nothing_trained_is_no_number_and_no_warning(recwarn):
    given = gradients(np.random.default_rng(7))
    found = efficiency(replace(given, vectors=np.zeros_like(given.vectors), signal=np.zeros_like(given.signal)))
    assert found.mean_square.value == found.variance.value == 0 and found.without_signal.value == 1
    assert math.isnan(found.per_token.value) and math.isnan(found.within.value) and not recwarn.list


def test_a_gain_is_the_quotient_and_its_error_that_of_the_comparison():
    """Over the same questions a noisy copy differs by little; over other questions by what both samples are off."""
    rng = np.random.default_rng(8)
    theirs = gradients(rng, questions=80)
    noise = 0.1 * rng.normal(size=theirs.vectors.shape).astype(np.float32)
    alike = replace(theirs, vectors=theirs.vectors + noise)
    other = gradients(rng, questions=80, first=1000)
    for ours in (alike, other):
        for cost, field in (("tokens", "per_token"), ("seconds", "per_second")):
            a, b = getattr(efficiency(ours), field), getattr(efficiency(theirs), field)
            found = gain(ours, theirs, cost)
            assert found.value == pytest.approx(a.value / b.value)
            apart = found.value * math.hypot(a.error / a.value, b.error / b.value)  # to first order
            assert found.error == pytest.approx(apart, rel=0.1) if ours is other else found.error < 0.2 * apart
    same = gain(theirs, replace(theirs, vectors=3 * theirs.vectors), "tokens")
    assert same.value == pytest.approx(1) and same.error < 1e-6


def test_a_gain_is_left_open_over_what_is_not_told_from_zero():
    rng = np.random.default_rng(9)
    noise = gradients(rng, mean=np.zeros(6))
    noise = replace(noise, vectors=noise.vectors - noise.vectors.mean((0, 1)))
    assert math.isnan(gain(gradients(rng), noise, "tokens").value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda g: {"vectors": g.vectors[:2]}, "at least 3"),
        (lambda g: {"vectors": g.vectors[:, :1]}, "sampled 1 times"),
        (lambda g: {"questions": ("q0", *g.questions[:-1])}, "no question twice"),
        (lambda g: {"tokens": g.tokens[1:]}, "one cost"),
    ],
)
def test_gradients_that_give_no_error_are_refused(change, says):
    given = gradients(np.random.default_rng(9))
    values = {f.name: getattr(given, f.name) for f in fields(Gradients)}
    with pytest.raises(ValueError, match=says):
        Gradients(**(values | change(given)))
