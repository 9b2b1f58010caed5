"""Which tokens of a segment the update reaches; a token sampled with certainty decided nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spo_core.config import AllTokens, LowProbability

Logprobs = Sequence[float] | np.ndarray


def token_mask(logprobs: Logprobs, params: AllTokens | LowProbability) -> np.ndarray:
    """Bool [n]: all tokens, or those with sampling probability strictly below the threshold (paper section 4.3).

    ``logprobs`` [n] of one segment.
    """
    if params.type == "all":
        return np.ones(len(logprobs), bool)
    return is_low(logprobs, params.threshold)


def is_low(logprobs: Logprobs, threshold: float) -> np.ndarray:
    """Bool [n]: probability strictly below the threshold (docs/reference.md 1.1 step 5)."""
    return np.asarray(logprobs, np.float32) < _log(threshold)


def is_certain(logprobs: Logprobs, threshold: float) -> np.ndarray:
    """Bool [n]: probability strictly above. A token at exactly the threshold is neither (docs/reference.md 1.1 step 7).

    Compared as float32 log-probs, the form in which they are kept: there "exactly 0.9" is one number, while its
    exponential would fall to either side by rounding.
    """
    return np.asarray(logprobs, np.float32) > _log(threshold)


def _log(threshold: float) -> np.float32:
    with np.errstate(divide="ignore"):  # nothing is below a threshold of 0
        return np.float32(np.log(threshold))
