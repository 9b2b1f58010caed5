"""Which questions an iteration asks: each once before any is asked again, in an order drawn from the seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spo_core.problems.base import Question
from spo_core.rollout.seeds import derive_seed


def draw_questions(rows: Sequence[Question], count: int, *, seed: int, iteration: int) -> list[Question]:
    """The questions of iteration 1, 2, ...: a pure function, so there is nothing to save for a resume."""
    orders: dict[int, np.ndarray] = {}
    drawn = []
    for position in range((iteration - 1) * count, iteration * count):
        epoch, place = divmod(position, len(rows))
        if epoch not in orders:
            orders[epoch] = np.random.default_rng(derive_seed(seed, "questions", epoch)).permutation(len(rows))
        drawn.append(rows[orders[epoch][place]])
    return drawn
