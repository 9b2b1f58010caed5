"""The learning rate of an optimizer step."""

from __future__ import annotations

import math

from spo_core.config import LearnParams


def learning_rate(step: int, params: LearnParams) -> float:
    """Learning rate of the next optimizer step, ``step`` steps after the schedule began.

    Linear: peak x (step + 1) / warmup_steps. Log: peak x log(step + 1) / log(warmup_steps), which DeepSpeed's
    WarmupDecayLR does by default and the published runs therefore did (docs/reference.md 3.1); its first step has
    rate 0. Then constant, or falling linearly to 0 at ``decay_steps``.
    """
    warmup = params.warmup_steps
    if step < warmup:
        rise = (step + 1) / warmup if params.warmup == "linear" else math.log(step + 1) / math.log(max(warmup, 2))
        return params.learning_rate * min(1.0, rise)
    if params.decay_steps is None:
        return params.learning_rate
    return params.learning_rate * max(0.0, (params.decay_steps - step) / (params.decay_steps - warmup))
