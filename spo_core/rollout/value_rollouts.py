"""Adaptive Monte Carlo: how many value rollouts the states of one question still need.

Decisions are taken in rounds, when all requests of a question have finished, and from totals that do not depend on the
order in which they did. So the same seeds give the same tree however many requests are decoded at once.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from spo_core.config import AdaptiveMonteCarlo

MASS = 0.9  # probability of the posterior interval


@dataclass(slots=True)
class State:
    """A state to be valued: the end of ``node``, reached by ``prefix`` (int32 [n], the prompt included).

    ``path`` names its seeds, ``parent_request`` a request whose cache holds the prefix. ``started`` counts the rollouts
    that began here, ``rewards`` those that began or came through here.
    """

    node: int
    prefix: np.ndarray
    path: tuple[str, ...]
    parent_request: int | None
    started: int = 0
    rewards: list[float] = field(default_factory=list)


@dataclass(slots=True)
class ValueGroup:
    """The states cut from all responses to one question. ``rewards`` are of its responses and all its rollouts."""

    states: list[State] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    along: dict[str, list[State]] = field(default_factory=dict)
    """States by the response they were cut from, rising; set by ``share``."""

    def share(self) -> list[State]:
        """Keep one of equal states, that of the first response, whose fan values all; returns the dropped ones."""
        self.states.sort(key=lambda s: (len(s.prefix), [int(part) for part in s.path[:1] if part.isdecimal()]))
        kept: dict[bytes, State] = {}
        dropped = [s for s in self.states if kept.setdefault(s.prefix.tobytes(), s) is not s]
        self.states = list(kept.values())
        self.along = {}
        for state in self.states:
            self.along.setdefault(state.path[0], []).append(state)
        return dropped

    def record(self, start: int, tokens: np.ndarray, reward: float) -> None:
        """Count the reward of what was sampled behind ``start`` tokens and ended as ``tokens``, int32 [n], the prompt
        included.

        A value rollout counts for every state that it came through: what it sampled from there is a sample of that
        state's policy, because the states were fixed before it was drawn. A response counts for none: its states are
        cut from it, and shared when all responses have ended.
        """
        self.rewards.append(reward)
        for states in self.along.values():
            for state in states[bisect_left(states, start, key=lambda s: len(s.prefix)) :]:
                if not np.array_equal(tokens[: len(state.prefix)], state.prefix):
                    break  # later states of this response cannot match either
                state.rewards.append(reward)

    def next_round(self, params: AdaptiveMonteCarlo) -> list[tuple[State, int]]:
        """Decide on the rollouts to begin now, as (state, how many); none when all is decided.

        Every state begins with ``min_rollouts``. A state is then asked for as many again while its posterior interval
        is not narrower than the tolerance, until ``max_rollouts`` count for it. No state of the group goes on once all
        its rewards agree and the posterior interval of their common mean is narrow: its differences are decided.
        """
        fresh = [(s, params.min_rollouts) for s in self.states if not s.started]
        if fresh:
            return fresh
        if min(self.rewards) == max(self.rewards) and _narrow(self.rewards, params.tolerance):
            return []
        asked = []
        for state in self.states:
            more = min(params.min_rollouts, params.max_rollouts - len(state.rewards))
            if more > 0 and not _narrow(state.rewards, params.tolerance):
                asked.append((state, more))
        return asked


def _narrow(rewards: list[float], tolerance: float) -> bool:
    return posterior_width(math.fsum(rewards), len(rewards)) < tolerance  # fsum: the same sum in any order


@lru_cache(maxsize=1 << 16)
def posterior_width(total: float, count: int) -> float:
    """Width of the central 90 % interval of Beta(1/2 + total, 1/2 + count - total), the posterior of a success
    probability after ``count`` rewards in [0, 1] under Jeffreys' prior."""
    a, b = 0.5 + total, 0.5 + count - total
    from scipy.special import betaincinv  # for adaptive values alone

    low, high = betaincinv(a, b, [(1 - MASS) / 2, (1 + MASS) / 2])  # quantiles of the Beta distribution
    return float(high - low)
