"""Refuses a policy that the transformers engine decodes otherwise than its plain forward pass computes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from spo_core.policy.architecture import (
    attempted,
    difference,
    kinds_of,
    path_length,
    plain_logprobs,
    random_ids,
    refusal,
    refuse_positions_of_its_own,
    refuse_stretched_positions,
    tolerance,
)
from spo_core.rollout.engine import Request, finish_all
from spo_core.rollout.transformers_engine import TransformersEngine

SAMPLED = 4  # tokens sampled a request


def checked_engine(model: PreTrainedModel, *, context_length: int, **options: Any) -> TransformersEngine:
    """Make an engine, and check that log-probs of what it samples, and of a child's, are those of a plain forward pass.

    The prompt is longer than every window below ``context_length``. Raises ConfigError where they are not.
    """
    use = "be sampled by the transformers engine"
    refuse_stretched_positions(model, context_length)
    refuse_positions_of_its_own(model, use)
    engine, failure = attempted(lambda: TransformersEngine(model, context_length=context_length, **options))
    texts, failure = (None, failure) if engine is None else attempted(lambda: _sampled(engine))
    if engine is None or texts is None:
        raise refusal(model, use, f"{kinds_of(model)}: {failure}")

    def plain(own: bool) -> Tensor:
        return torch.cat(
            [plain_logprobs(model, ids, engine.temperature, own=own)[-len(found) :] for ids, found in texts]
        )

    found, expected = torch.cat([logprobs for _, logprobs in texts]), plain(own=True)
    if difference(found, expected) > tolerance(model, expected, lambda: plain(own=False)):
        off = f"log-probs are off those of a plain forward pass by {difference(found, expected):.2g} of their spread"
        raise refusal(model, use, f"{kinds_of(model)}: {off}")
    return engine


def _sampled(engine: TransformersEngine) -> list[tuple[np.ndarray, Tensor]]:
    """Sample three requests; returns their token ids, prefixes included, and the log-probs of the sampled ones."""
    total = path_length(engine.model, engine.context_length)
    count = min(SAMPLED, max(1, (total - 1) // 3))
    rng = np.random.default_rng(0)
    prefixes = [random_ids(engine.model, n, rng) for n in (max(1, total - 2 * count), max(1, total // 4))]
    engine.submit(Request(n, prefix, count, seed=n, keep=n == 0) for n, prefix in enumerate(prefixes))
    done = finish_all(engine)
    prefixes.append(np.concatenate([prefixes[0], done[0].token_ids]))
    engine.submit([Request(2, prefixes[2], count, seed=2, parent=0)])
    done |= finish_all(engine)
    engine.release(0)
    return [
        (np.concatenate([prefix, done[n].token_ids]), torch.from_numpy(done[n].logprobs))
        for n, prefix in enumerate(prefixes)
    ]
