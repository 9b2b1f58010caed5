"""Entropy and ratio of a tree's tokens under a policy of its run: computed when asked for, as no file holds them."""

from __future__ import annotations

import math
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from spo_core.errors import DataError
from spo_core.system.files import read_json
from spo_core.tree import RolloutTree

MOST_WORK = 2e12  # weights × tokens: about half a minute on two cores
Measured = dict[int, dict[str, list[float | None]]]
_ONE_AT_A_TIME = threading.Lock()


def measure(tree: RolloutTree, policy: Path, temperature: float) -> Measured:
    """Entropy in nats, and policy's probability over the sampling one's, of every token that may be trained, by node.

    Each shared prefix is forwarded once, as in training. Raises DataError for more work than MOST_WORK.
    """
    tokens = int(sum(len(n.token_ids) for n in tree.nodes if n.trainable))
    weights = _weights(policy)
    if weights * tokens > MOST_WORK:
        raise DataError(
            f"{tokens:,} tokens through {weights / 1e9:.2f}B weights would take this machine's CPU minutes; entropy "
            f"and ratio are computed up to {MOST_WORK:.0e} weights × tokens"
        )
    with _ONE_AT_A_TIME:
        return _measured(tree, policy, (policy / "config.json").stat().st_mtime_ns, temperature)


def _weights(policy: Path) -> float:
    """Number of a policy's weights, from the sizes of its files; as if each had two bytes."""
    index = policy / "model.safetensors.index.json"
    if index.is_file():
        return float(read_json(index)["metadata"]["total_size"]) / 2
    return sum(path.stat().st_size for path in policy.glob("*.safetensors")) / 2


def _measured(tree: RolloutTree, policy: Path, stamp: int, temperature: float) -> Measured:
    import torch  # here, as pages that need no policy should not wait seconds for it

    from spo_core.learn.tree_batch import TrainedSegments, layout

    masks = tuple(np.full(len(node.token_ids), node.trainable) for node in tree.nodes)
    batch = layout([TrainedSegments(tree, masks)])
    with torch.no_grad():
        logprobs, entropies = _policy(policy, stamp)(batch, temperature, entropy=True)
    found, start = {}, 0
    for _, index in batch.order:
        node, stop = tree.nodes[index], start + len(tree.nodes[index].token_ids)
        ratio = np.exp(logprobs[start:stop].double().numpy() - node.logprobs.astype(np.float64))
        found[index] = {
            "entropy": [round(x, 5) for x in entropies[start:stop].tolist()],
            "ratio": [round(x, 5) if math.isfinite(x) else None for x in ratio.tolist()],
        }
        start = stop
    return found


@lru_cache(maxsize=1)
def _policy(folder: Path, stamp: int) -> Any:
    from spo_core.learn.tree_forward import TreePolicy
    from spo_core.policy.checkpoint import load_policy

    model, _ = load_policy(folder)
    return TreePolicy(model.eval())
