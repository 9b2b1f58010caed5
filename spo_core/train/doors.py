"""Checks of the user's own functions that a run uses, before it starts; their digests are part of its identity."""

from __future__ import annotations

from collections.abc import Iterator

from spo_core.config import CustomParams, Params
from spo_core.credit.advantage import AdvantageEstimator
from spo_core.credit.value import ValueEstimator
from spo_core.learn.loss import CheckedLoss, TokenLoss
from spo_core.runs.fingerprint import source_digest
from spo_core.system.plugins import load, source
from spo_core.verify.reward import RewardFunction


def opened(params: Params) -> Iterator[tuple[str, CustomParams, type]]:
    """Yield key, params and protocol of each custom choice."""
    chosen: list[tuple[str, object, type]] = [
        ("credit.advantage", params.credit.advantage, AdvantageEstimator),
        ("credit.value", params.credit.value, ValueEstimator),
        ("learn.loss", params.learn.loss, TokenLoss),
        *((f"verify.reward.{n}", term, RewardFunction) for n, term in enumerate(params.verify.reward)),
    ]
    for key, found, door in chosen:
        if isinstance(found, CustomParams):
            yield key, found, door


def sources(params: Params) -> dict[str, str]:
    """Check every custom choice against its protocol; returns the digests of their modules, by key. Raises ConfigError.

    The project must have been opened; see ``system.plugins``.
    """
    found = {}
    for key, custom, door in opened(params):
        load(key, custom.path, custom.options, door)
        if key == "learn.loss":
            CheckedLoss(params.learn)
        found[key] = source_digest(source(key, custom.path))
    return found
