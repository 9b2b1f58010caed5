"""Losses that ``learn.loss`` names beside PPO's: maximum likelihood, and those of whole sequences (DPO-positive, DVO).

A *sequence* is a segment with its siblings: a whole response of credit.partition whole, a segment of a sampled tree.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from spo_core.config.namespace import Namespace


class Likelihood(Namespace):
    """-A log p, without ratio and clip: maximum likelihood where A is 1 (ReST-EM), REINFORCE of any other credit."""

    type: Literal["likelihood"]


class DPOPositive(Namespace):
    """-log sigmoid(beta z) of pairs of siblings, z = Δ log policy - Δ log reference - penalty x what the accepted lost.

    DPO-positive (arXiv 2402.13228, equation 3; docs/reference.md 1.4): Δ is accepted less rejected, and the accepted
    one may not become less likely than under the reference policy.
    """

    type: Literal["dpo_positive"]
    beta: float = Field(default=0.3, gt=0)
    """Scale of a pair's log-ratio."""
    penalty: float = Field(default=50.0, ge=0)
    """Weight of max(0, log reference - log policy) of the accepted sequence; 0 is DPO."""
    margin: float = Field(default=0.5, gt=0)
    """Two siblings are a pair where their values differ by this much or more; for rewards of 0 and 1 that is one right
    and one wrong response, the published threshold of 0.5."""
    pairs: int | None = Field(default=64, ge=1)
    """Most pairs of a question in an iteration, drawn at random; null: all."""


class DirectValue(Namespace):
    """w (beta log(policy / reference) - A)^2 / 2 of every sequence, w = min(policy / sampling policy, cap), constant.

    Direct value optimization (arXiv 2502.13723) as the published code has it (docs/reference.md 1.4).
    """

    type: Literal["dvo"]
    beta: float = Field(default=0.1, gt=0)
    """Scale of a sequence's log-ratio."""
    cap: float = Field(default=10.0, gt=0)
    """Largest importance weight of a sequence."""


SEQUENCE_LOSSES = ("dpo_positive", "dvo")
"""Losses of whole sequences, which need the reference policy."""
