"""Where a sampled trajectory is cut. Cutting while sampling (fixed tokens) is ``rollout/sampler.py``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np


def cutpoints(logprobs: Sequence[float] | np.ndarray, prob_threshold: float, interval: int) -> list[int]:
    """Cutpoints of one trajectory, SPO-chain (paper section 4.1; reference facts 1.1 step 5).

    ``logprobs`` [n] are the sampling log-probs of the response. Tokens with probability strictly below
    ``prob_threshold`` are counted; every ``interval``-th, beginning with the first, is cut *just before*. A cutpoint c
    means the state after tokens 0..c, so the prefix is ``y[:c+1]`` and c = -1 is the prompt.
    """
    low = np.flatnonzero(np.exp(np.asarray(logprobs, np.float64)) < prob_threshold)
    return [int(t) - 1 for t in low[::interval]]


def segment_bounds(length: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """Half-open token ranges of the segments that cutpoints leave, covering 0..length without a gap.

    The cut at -1 (the prompt state) starts the first segment and makes none of its own.
    """
    if length < 1:
        raise ValueError(f"a trajectory has at least one token, not {length}")
    starts = [0, *(c + 1 for c in cuts if c >= 0)]
    if any(b <= a for a, b in pairwise(starts)) or starts[-1] >= length:
        raise ValueError(f"cutpoints {list(cuts)} do not rise within a trajectory of {length} tokens")
    return list(zip(starts, [*starts[1:], length], strict=True))
