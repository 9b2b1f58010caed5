"""Token losses beside PPO clip: GSPO and CISPO. Each is chosen as ``learn.loss: {type: ...}`` over any credit."""

from __future__ import annotations

import torch
from pydantic import BaseModel, Field

from spo_core.learn.loss import LOG_RATIO_LIMIT, LossInputs, LossOutputs, likelihood_ratio
from spo_core.learn.tree_batch import taken


class GSPOOptions(BaseModel):
    """The published clip ranges, far narrower than PPO's: the ratio is a mean over a whole sequence."""

    clip_low: float = Field(default=3e-4, gt=0)
    clip_high: float = Field(default=4e-4, gt=0)


def gspo(inputs: LossInputs, options: GSPOOptions) -> LossOutputs:
    """max(-A s, -A clip(s, 1 - clip_low, 1 + clip_high)) with one ratio a segment, s = exp(mean of logp - old).

    Over whole responses s is GSPO's ratio of a sequence (arXiv 2507.18071, equations 6 and 7). A response of several
    segments has a ratio a segment, each over its trained tokens: that is ours. The paper weighs sequences, not tokens,
    equally: ``learn.normalization: episode``.
    """
    change = (inputs.logprobs - inputs.old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    sizes = torch.bincount(inputs.segments)
    sums = torch.zeros(len(sizes), dtype=change.dtype, device=change.device).index_add(0, inputs.segments, change)
    ratio = taken((sums / sizes.clamp(min=1)).exp()[:, None], inputs.segments)[:, 0]
    unclipped = -inputs.advantages * ratio
    clipped = -inputs.advantages * ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
    metrics = {"ratio": ratio.detach(), "clip_fraction": (clipped > unclipped).detach()}
    return LossOutputs(torch.maximum(unclipped, clipped), metrics)


class CISPOOptions(BaseModel):
    """Bounds of the weight. The paper sets no lower one (1 does that) and tunes the upper one without publishing it;
    4 is ours."""

    clip_low: float = Field(default=1.0, gt=0)
    clip_high: float = Field(default=4.0, gt=0)


def cispo(inputs: LossInputs, options: CISPOOptions) -> LossOutputs:
    """-A w logp, where w = clip(r, 1 - clip_low, 1 + clip_high) has no gradient (arXiv 2506.13585, equations 4 and 5).

    So the weight of a token is bounded, and no token loses its gradient as by PPO's clip.
    """
    ratio = likelihood_ratio(inputs.logprobs, inputs.old_logprobs).detach()
    weight = ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
    metrics = {"ratio": ratio, "clip_fraction": weight != ratio}
    return LossOutputs(-inputs.advantages * weight * inputs.logprobs, metrics)
