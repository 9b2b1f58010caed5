"""Statistics of repeated samples. The question is the unit: samples of one question are not independent."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def question_means(rewards: ArrayLike) -> NDArray[np.float64]:
    """Mean reward of each question, (questions,), from rewards (questions, samples). Raises ValueError if empty."""
    table = np.asarray(rewards, np.float64)
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"rewards must be (questions, samples) and not empty, got shape {table.shape}")
    return table.mean(axis=1)


def mean(values: ArrayLike) -> float:
    """Correctly rounded sum over count, so that it does not depend on the order. Raises ValueError if empty."""
    flat = np.asarray(values, np.float64).ravel()
    if flat.size == 0:
        raise ValueError("the mean of nothing is not defined")
    return math.fsum(flat) / flat.size


def standard_error(means: ArrayLike) -> float | None:
    """Of the mean over questions: standard deviation (ddof 1) / sqrt(questions); None for a single question."""
    flat = np.asarray(means, np.float64).ravel()
    if flat.size < 2:
        return None
    return float(flat.std(ddof=1) / math.sqrt(flat.size))
