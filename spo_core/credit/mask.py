"""Which tokens of a segment the update reaches; a token sampled with certainty decided nothing."""

from __future__ import annotations

import numpy as np

from spo_core.config import AllTokens, LowProbability


def token_mask(logprobs: np.ndarray, params: AllTokens | LowProbability) -> np.ndarray:
    """Bool [n]: all tokens, or those with sampling probability strictly below the threshold (paper section 4.3).

    ``logprobs`` float32 [n] of one segment; compared in float64, as the reference compares ``exp(logp) < 0.9``.
    """
    if params.type == "all":
        return np.ones(len(logprobs), bool)
    return np.exp(np.asarray(logprobs, np.float64)) < params.threshold
