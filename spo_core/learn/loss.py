"""The policy loss over trained tokens: PPO clip and the k3 estimate of the KL to the reference policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spo_core.config import LearnParams

LOG_RATIO_LIMIT = 10.0  # as in the reference implementation: exp() of a log-ratio stays finite


@dataclass(frozen=True, eq=False, slots=True)
class TokenLoss:
    """Per trained token, each [tokens]: policy loss, KL estimate, and the detached ratio for reports."""

    policy: Tensor
    kl: Tensor
    ratio: Tensor
    clipped: Tensor


def token_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, reference_logprobs: Tensor | None, params: LearnParams
) -> TokenLoss:
    """Unreduced loss of trained tokens, all inputs [tokens]; the caller divides by the optimizer batch's token count.

    policy = max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)), r = exp(logp - old) with old the *sampling* log-probs
    (paper equation 7). kl = exp(d) - d - 1 with d = reference - logp (k3): never negative, 0 where they agree.
    """
    ratio = (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    clipped_ratio = ratio.clamp(1 - params.clip_low, 1 + params.clip_high)
    unclipped_loss, clipped_loss = -advantages * ratio, -advantages * clipped_ratio
    if reference_logprobs is None:
        kl = torch.zeros_like(ratio)
    else:
        d = (reference_logprobs - logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        kl = d.exp() - d - 1
    return TokenLoss(
        torch.maximum(unclipped_loss, clipped_loss), kl, ratio.detach(), (clipped_loss > unclipped_loss).detach()
    )
