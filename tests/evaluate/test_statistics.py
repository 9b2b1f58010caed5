"""The statistics against a naive computation and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import sem

from spo_core.evaluate import statistics


def naive_standard_error(values: list[float]) -> float:
    average = sum(values) / len(values)
    return math.sqrt(sum((v - average) ** 2 for v in values) / (len(values) - 1)) / math.sqrt(len(values))


@pytest.mark.parametrize(("questions", "samples"), [(2, 1), (7, 4), (250, 4), (40, 33)])
def test_agrees_with_naive_and_scipy(questions, samples):
    rewards = np.random.default_rng([questions, samples]).integers(0, 2, (questions, samples)).astype(float)
    means = statistics.question_means(rewards)
    naive = [sum(row) / samples for row in rewards.tolist()]
    assert means == pytest.approx(naive, abs=1e-15)
    assert statistics.mean(means) == pytest.approx(rewards.mean(), abs=1e-15)
    assert statistics.standard_error(means) == pytest.approx(naive_standard_error(naive), rel=1e-12)
    assert statistics.standard_error(means) == pytest.approx(sem(naive), rel=1e-12)


def test_samples_of_a_question_are_not_independent():
    rewards = [[1, 1, 1, 1], [0, 0, 0, 0]]
    assert statistics.standard_error(statistics.question_means(rewards)) == pytest.approx(0.5)


def test_mean_does_not_depend_on_the_order():
    values = np.random.default_rng(0).random(1000)
    assert statistics.mean(values) == statistics.mean(values[::-1])


def test_one_question_has_no_standard_error():
    assert statistics.standard_error([0.25]) is None


@pytest.mark.parametrize("rewards", [[], [[]], [1.0, 0.0], [[1.0], [1.0, 0.0]]])
def test_refuses_what_is_not_a_table(rewards):
    with pytest.raises(ValueError):
        statistics.question_means(rewards)
    with pytest.raises(ValueError):
        statistics.mean([])
