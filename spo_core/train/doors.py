"""What a run takes from the project's own modules: found and checked before it starts, and part of its identity."""

from __future__ import annotations

from collections.abc import Iterator

from spo_core.config import CustomParams, Params
from spo_core.credit.advantage import AdvantageEstimator
from spo_core.credit.value import ValueEstimator
from spo_core.learn.loss import CheckedLoss, TokenLoss
from spo_core.runs.fingerprint import source_digest
from spo_core.system.plugins import load, source

DOORS = {"credit.advantage": AdvantageEstimator, "credit.value": ValueEstimator, "learn.loss": TokenLoss}


def opened(params: Params) -> Iterator[tuple[str, CustomParams]]:
    """The keys whose value is the project's own."""
    for key in DOORS:
        namespace, name = key.split(".")
        chosen = getattr(getattr(params, namespace), name)
        if isinstance(chosen, CustomParams):
            yield key, chosen


def sources(params: Params) -> dict[str, str]:
    """By key, the digest of the module that each comes from, once it is found to fit; ConfigError where one does not.

    The project must have been opened; see ``system.plugins``.
    """
    found = {}
    for key, custom in opened(params):
        load(key, custom.path, custom.options, DOORS[key])
        if key == "learn.loss":
            CheckedLoss(params.learn)
        found[key] = source_digest(source(key, custom.path))
    return found
