"""Inverse-CDF sampling: one uniform number gives one token, whatever else is drawn beside it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def draw(
    logits: Tensor, rows: np.ndarray, noise: np.ndarray, top_p: float, entropy: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Draw a token for every request; returns ids, log-probs and, where asked for, entropies in nats before top-p; each
    [requests].

    ``logits`` (rows, vocabulary) are divided by the temperature; ``rows`` [requests] says which row a request draws
    from, and ``noise`` [requests] with which number in [0, 1).
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    probs = logprobs.double().exp()
    entropies = torch.special.entr(probs).sum(-1).cpu().numpy()[rows] if entropy else None
    if top_p < 1:
        probs = nucleus(probs, top_p)
    cdf = probs.cumsum(-1)
    ranks = _ranks(rows)
    uniform = np.zeros((len(cdf), ranks.max() + 1))  # one row's requests side by side
    uniform[rows, ranks] = noise
    tokens = torch.searchsorted(cdf, torch.from_numpy(uniform).to(cdf.device) * cdf[:, -1:], right=True)
    last_possible = probs.shape[-1] - 1 - (probs.flip(-1) > 0).int().argmax(-1)
    tokens = torch.minimum(tokens, last_possible[:, None])
    chosen = logprobs.gather(-1, tokens).cpu().numpy()[rows, ranks]
    return tokens.cpu().numpy()[rows, ranks], chosen, entropies


def _ranks(rows: np.ndarray) -> np.ndarray:
    """Count for every entry the equal ones before it; int64 [n]."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    ranks = np.empty(len(rows), np.int64)
    ranks[order] = np.arange(len(rows)) - np.searchsorted(ordered, ordered)
    return ranks


def nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Zero all but the smallest set of tokens that reaches ``top_p``; (n, vocabulary), not renormalised."""
    ordered, order = probs.sort(dim=-1, descending=True)
    outside = ordered.cumsum(-1) - ordered >= top_p
    return probs.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), 0.0)
