"""The statistics against a naive computation and scipy."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import sem, ttest_rel
from scipy.stats import t as scipy_t

from spo_core.evaluate import uncertainty


def naive_standard_error(values: list[float]) -> float:
    average = sum(values) / len(values)
    return math.sqrt(sum((v - average) ** 2 for v in values) / (len(values) - 1)) / math.sqrt(len(values))


@pytest.mark.parametrize(("questions", "samples"), [(2, 1), (7, 4), (250, 4), (40, 33)])
def test_agrees_with_naive_and_scipy(questions, samples):
    rewards = np.random.default_rng([questions, samples]).integers(0, 2, (questions, samples)).astype(float)
    means = uncertainty.question_means(rewards)
    naive = [sum(row) / samples for row in rewards.tolist()]
    assert means == pytest.approx(naive, abs=1e-15)
    assert uncertainty.mean(means) == pytest.approx(rewards.mean(), abs=1e-15)
    assert uncertainty.standard_error(means) == pytest.approx(naive_standard_error(naive), rel=1e-12)
    assert uncertainty.standard_error(means) == pytest.approx(sem(naive), rel=1e-12)


def test_samples_of_a_question_are_not_independent():
    rewards = [[1, 1, 1, 1], [0, 0, 0, 0]]
    assert uncertainty.standard_error(uncertainty.question_means(rewards)) == pytest.approx(0.5)


def test_mean_does_not_depend_on_the_order():
    values = np.random.default_rng(0).random(1000)
    assert uncertainty.mean(values) == uncertainty.mean(values[::-1])


def test_one_question_has_no_standard_error():
    assert uncertainty.standard_error([0.25]) is None


@pytest.mark.parametrize("rewards", [[], [[]], [1.0, 0.0], [[1.0], [1.0, 0.0]]])
def test_refuses_what_is_not_a_table(rewards):
    with pytest.raises(ValueError):
        uncertainty.question_means(rewards)
    with pytest.raises(ValueError):
        uncertainty.mean([])


def rewards(questions, samples, seed=0, chances=None):
    rng = np.random.default_rng([questions, samples, seed])
    return (rng.random((questions, samples)) < (rng.random((questions, 1)) if chances is None else chances)).astype(int)


def naive_bootstrap(table, resamples, seed):
    """Samples drawn anew within each question, one resample after the other; the percentile interval expanded by
    hand: (n / (n - 1))^0.5 for the divisor of the variance, Student's t for its own error."""
    rng = random.Random(seed)
    found = []
    for _ in range(resamples):
        means = [sum(rng.choices(row, k=len(row))) / len(row) for row in table]
        found.append(sum(means) / len(means))
    samples = len(table[0])
    beyond = scipy_t.ppf(0.975, len(table) * (samples - 1)) * (samples / (samples - 1)) ** 0.5
    tail = (1 - math.erf(beyond / 2**0.5)) / 2
    return np.quantile(found, [tail, 1 - tail])


@pytest.mark.parametrize(("questions", "samples"), [(5, 4), (20, 8), (1, 16)])
def test_bootstrap_agrees_with_a_naive_loop(questions, samples):
    table = rewards(questions, samples)
    expected = naive_bootstrap(table.tolist(), 4000, seed=1)
    assert uncertainty.bootstrap_interval(table, seed=1) == pytest.approx(expected, abs=2.01 / (questions * samples))


@pytest.mark.parametrize(("questions", "samples"), [(500, 16), (1319, 4), (200, 64)])
def test_bootstrap_agrees_with_the_normal_approximation(questions, samples):
    table = rewards(questions, samples)
    p = table.mean(axis=1)
    error = math.sqrt((p * (1 - p) / (samples - 1)).sum()) / questions
    low, high = uncertainty.bootstrap_interval(table, seed=0)
    assert [low, high] == pytest.approx([p.mean() - 1.96 * error, p.mean() + 1.96 * error], abs=0.1 * error)


def test_bootstrap_holds_questions_fixed():
    assert uncertainty.bootstrap_interval([[1, 1], [0, 0], [0, 0], [0, 0]], seed=0) == (0.25, 0.25)


CHANCES = {
    "even": lambda rng, m: rng.random(m),
    "all alike": lambda rng, m: np.full(m, 0.5),
    "easy": lambda rng, m: np.full(m, 0.9),
    "known or not": lambda rng, m: rng.beta(0.3, 0.3, m),
    "hard": lambda rng, m: rng.beta(0.5, 4, m),
}
TRIALS = 300  # 0.95 of them, give or take 0.013


@pytest.mark.parametrize("samples", [2, 4, 8, 16])
@pytest.mark.parametrize("chances", CHANCES)
def test_interval_over_samples_covers_what_sampling_again_would_give(chances, samples, monkeypatch):
    """Plain percentiles cover 0.83 of them at 2 samples, 0.91 at 4."""
    monkeypatch.setattr(uncertainty, "RESAMPLES", 2000)
    rng = np.random.default_rng([samples, len(chances)])
    covered = 0
    for trial in range(TRIALS):
        p = CHANCES[chances](rng, 80)
        table = rng.random((80, samples)) < p[:, None]
        low, high = uncertainty.bootstrap_interval(table, seed=trial)
        covered += low <= p.mean() <= high
    # hard questions are mostly never answered: few of them have a spread to resample
    assert (0.88 if (chances, samples) == ("hard", 2) else 0.92) <= covered / TRIALS <= 0.985


@pytest.mark.parametrize("questions", [8, 16, 64])
@pytest.mark.parametrize("samples", [2, 4, 8, 16])
def test_interval_of_a_difference_covers_what_other_questions_would_give(samples, questions, monkeypatch):
    """b is better by 0.1 on average. Plain percentiles cover 0.83 to 0.89 of them at 8 questions."""
    monkeypatch.setattr(uncertainty, "RESAMPLES", 3000)
    rng = np.random.default_rng([samples, questions])
    covered = 0
    for trial in range(TRIALS):
        first = rng.uniform(0, 0.8, questions)
        second = np.clip(first + rng.normal(0.1, 0.05, questions), 0, 1)
        a, b = (rng.binomial(samples, p) / samples for p in (first, second))
        low, high = uncertainty.paired(a, b, seed=trial).interval
        covered += low <= 0.1 <= high
    assert (0.905 if questions == 8 else 0.925) <= covered / TRIALS <= 0.985


@settings(deadline=None, max_examples=30)
@given(
    table=st.integers(2, 5).flatmap(lambda n: st.lists(st.lists(st.integers(0, 1), min_size=n, max_size=n), min_size=1))
)
def test_bootstrap_holds_the_accuracy_and_depends_on_no_order(table):
    low, high = uncertainty.bootstrap_interval(table, seed=3)
    assert 0 <= low <= np.mean(table) <= high <= 1
    assert uncertainty.bootstrap_interval([row[::-1] for row in table[::-1]], seed=3) == (low, high)


def test_one_sample_has_no_bootstrap_interval():
    assert uncertainty.bootstrap_interval([[1], [0], [1]], seed=0) is None


@pytest.mark.parametrize("table", [[], [[]], [1, 0], [[1], [1, 0]], [[0.5, 1]], [[math.nan, 1]]])
def test_bootstrap_refuses_what_are_no_rewards(table):
    with pytest.raises(ValueError):
        uncertainty.bootstrap_interval(table, seed=0)


def test_paired_error_agrees_with_scipy_and_undercuts_the_unpaired_one():
    a = uncertainty.question_means(rewards(400, 4))
    b = np.clip(a + np.random.default_rng(1).choice([0, 0, 0.25], 400), 0, 1)
    found = uncertainty.paired(a, b, seed=0)
    assert found.difference == pytest.approx(b.mean() - a.mean(), abs=1e-15)
    assert found.standard_error == pytest.approx(sem(b - a), rel=1e-12)
    test = ttest_rel(b, a)
    assert found.difference / found.standard_error == pytest.approx(test.statistic, rel=1e-12)
    interval = test.confidence_interval(0.95)
    assert found.interval == pytest.approx((interval.low, interval.high), abs=0.15 * found.standard_error)
    assert found.standard_error < math.hypot(sem(a), sem(b)) / 3


def test_paired_is_mirrored_when_the_two_change_places():
    a, b = (uncertainty.question_means(rewards(30, 4, seed)) for seed in (1, 2))
    there, back = uncertainty.paired(a, b, seed=5), uncertainty.paired(b, a, seed=5)
    assert back.difference == -there.difference and back.standard_error == there.standard_error
    assert back.interval == pytest.approx((-there.interval[1], -there.interval[0]), abs=1e-15)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("a", "b"), [([0.5, 0.25] * 3, [0.75, 0.5] * 3), ([1 / 3, 2 / 3, 0] * 2, [2 / 3, 1, 1 / 3] * 2), ([0] * 6, [0] * 6)]
)
def test_paired_differences_that_are_all_the_same(a, b):
    found = uncertainty.paired(a, b, seed=0)
    assert found.standard_error == pytest.approx(0, abs=1e-15)
    assert found.interval == pytest.approx((found.difference, found.difference), abs=1e-15)


def test_paired_of_one_question_is_a_difference_alone():
    assert uncertainty.paired([0.25], [1.0], seed=0) == uncertainty.Paired(0.75, None, None)


@pytest.mark.parametrize("questions", [2, 5])
def test_paired_of_questions_too_few_for_an_interval(questions):
    """The five differences themselves reach from below to above their mean in 15 of 16 cases: no 95 %."""
    found = uncertainty.paired(np.zeros(questions), np.arange(questions), seed=0)
    assert found.interval is None and found.standard_error > 0


@pytest.mark.parametrize(("a", "b"), [([], []), ([0.5], [0.5, 0.5]), ([[0.5]], [[0.5]])])
def test_paired_refuses_other_shapes(a, b):
    with pytest.raises(ValueError):
        uncertainty.paired(a, b, seed=0)


def test_mcnemar_of_a_table_by_hand():
    """10 questions that b alone gets right, 2 that a alone does: 2 * (1 + 12 + 66) / 2^12."""
    a, b = [0] * 10 + [1] * 2 + [1] * 30 + [0] * 8, [1] * 10 + [0] * 2 + [1] * 30 + [0] * 8
    assert uncertainty.mcnemar(a, b) == pytest.approx(158 / 4096, rel=1e-12)
    assert uncertainty.mcnemar(b, a) == uncertainty.mcnemar(a, b)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60))
def test_mcnemar_is_the_exact_binomial_of_those_that_differ(pairs):
    a, b = zip(*pairs, strict=True)
    won, lost = pairs.count((0, 1)), pairs.count((1, 0))
    tail = sum(math.comb(won + lost, k) for k in range(min(won, lost) + 1)) / 2 ** (won + lost)
    assert uncertainty.mcnemar(a, b) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)


def test_mcnemar_where_nothing_differs():
    assert uncertainty.mcnemar([1, 0, 1], [1, 0, 1]) == 1.0


@pytest.mark.parametrize(("a", "b"), [([], []), ([0.5], [1]), ([1, 0], [1])])
def test_mcnemar_refuses_what_are_no_rewards(a, b):
    with pytest.raises(ValueError):
        uncertainty.mcnemar(a, b)
