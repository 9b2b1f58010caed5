"""The loss of trained tokens: PPO clip, and the estimates of the KL to the reference policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spo_core.config import KLPenalty, LearnParams

LOG_RATIO_LIMIT = 10.0  # as in the reference implementation: exp() of a log-ratio stays finite


@dataclass(frozen=True, eq=False, slots=True)
class TokenLoss:
    """Per trained token, each [tokens]: policy loss, and for reports the detached ratio and whether it was clipped."""

    policy: Tensor
    ratio: Tensor
    clipped: Tensor


def token_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, params: LearnParams) -> TokenLoss:
    """Unreduced policy loss, all inputs [tokens].

    max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)), r = exp(logp - old) (paper equation 7). ``old`` are the
    *sampling* log-probs, or with ``importance_cap`` the trainer's own before the update.
    """
    ratio = (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    clipped_ratio = ratio.clamp(1 - params.clip_low, 1 + params.clip_high)
    unclipped_loss, clipped_loss = -advantages * ratio, -advantages * clipped_ratio
    return TokenLoss(
        torch.maximum(unclipped_loss, clipped_loss), ratio.detach(), (clipped_loss > unclipped_loss).detach()
    )


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, params: KLPenalty) -> Tensor:
    """Estimate of KL(policy || reference) at each sampled token, in nats; [tokens].

    With d = reference - logp: k1 = -d (unbiased, may be negative; as a *loss* its gradient is zero on average, so it
    belongs in the reward), k2 = d^2 / 2, k3 = exp(d) - d - 1 (never negative; the published "control_variate").
    """
    d = (reference_logprobs - logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if params.estimator == "k1":
        kl = -d
    elif params.estimator == "k2":
        kl = d.square() / 2
    else:
        kl = d.exp() - d - 1
    return kl if params.max is None else kl.clamp(max=params.max)


def importance_weights(trainer_logprobs: Tensor, engine_logprobs: Tensor, cap: float) -> Tensor:
    """min(trainer / engine, cap), [tokens]: corrects for an engine whose probabilities are not quite the trainer's."""
    return (trainer_logprobs - engine_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp().clamp(max=cap)


def adapted_coefficient(coefficient: float, kl: float, tokens: int, params: KLPenalty) -> float:
    """The KL coefficient after an iteration in which ``tokens`` were trained at a mean KL of ``kl`` nats a token.

    The proportional controller of Ziegler et al. (arXiv 1909.08593), as in the reference implementation.
    """
    if params.adaptive is None:
        return coefficient
    error = min(max(kl / params.adaptive.target - 1, -0.2), 0.2)
    return coefficient * (1 + error * min(1.0, tokens / params.adaptive.horizon))
