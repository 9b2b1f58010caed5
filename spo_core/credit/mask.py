"""The probability mask: which tokens of a segment are trained. A token sampled with certainty decided nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spo_core.config import AllTokens, LowProbability

Logprobs = Sequence[float] | np.ndarray


def token_mask(logprobs: Logprobs, params: AllTokens | LowProbability) -> np.ndarray:
    """Bool [n], from sampling log-probs [n]: all tokens, or those with probability strictly below the threshold (paper
    section 4.3)."""
    if params.type == "all":
        return np.ones(len(logprobs), bool)
    return is_low(logprobs, params.threshold)


def is_low(logprobs: Logprobs, threshold: float) -> np.ndarray:
    """Bool [n]: probability strictly below the threshold (docs/reference.md 1.1 step 5)."""
    return np.asarray(logprobs, np.float32) < _log(threshold)


def is_certain(logprobs: Logprobs, threshold: float) -> np.ndarray:
    """Bool [n]: probability strictly above the threshold; at exactly the threshold a token is neither low nor certain
    (docs/reference.md 1.1 step 7).

    Both compare float32 log-probs, as these are kept: "exactly 0.9" is one number there, while its exponential would
    round to either side.
    """
    return np.asarray(logprobs, np.float32) > _log(threshold)


def _log(threshold: float) -> np.float32:
    with np.errstate(divide="ignore"):  # nothing is below a threshold of 0
        return np.float32(np.log(threshold))
