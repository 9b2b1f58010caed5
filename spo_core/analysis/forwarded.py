"""Log-probs and entropies of chosen tokens of a sampled tree under a policy, without gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from spo_core.analysis.bench import Bench
from spo_core.credit.pairs import CreditedTree
from spo_core.learn.objective import WeightedTree
from spo_core.learn.splits import divide
from spo_core.learn.tree_batch import layout
from spo_core.learn.tree_forward import TreePolicy
from spo_core.tree import FinishReason, RolloutTree


def forwarded(
    bench: Bench,
    policy: TreePolicy,
    tree: RolloutTree,
    masks: tuple[np.ndarray, ...],
    temperature: float,
    *,
    entropy: bool = False,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For the tokens that ``masks``, bool [tokens of a node] each, choose: float64 pairs [tokens of a pass] of their
    log-probs when sampled and of their log-probs, or with ``entropy`` entropies in nats, under ``policy``."""
    ones = tuple(mask.astype(np.float32) for mask in masks)
    (passes,) = divide([WeightedTree(0, tree, masks, ones, ones, ones)], bench.backend.params.max_tokens_per_forward)
    for forward_batch in passes:
        batch = layout([own.segments for own in forward_batch], bench.backend.device)
        with torch.no_grad():
            found = policy(batch, temperature, entropy)[1 if entropy else 0]
        sampled = [forward_batch[i].tree.nodes[n].logprobs[forward_batch[i].masks[n]] for i, n in batch.order]
        yield np.concatenate(sampled).astype(np.float64), found.double().cpu().numpy()


def cut_entropies(bench: Bench, pairs: Sequence[CreditedTree], temperature: float) -> np.ndarray:
    """Entropies in nats of the distributions that the first tokens behind cuts were drawn from, float64 [cuts]."""
    found = [np.zeros(0)]
    for tree, _ in pairs:
        masks = tuple(np.zeros(len(node.token_ids), bool) for node in tree.nodes)
        for node, mask in zip(tree.nodes, masks, strict=True):
            mask[:1] = node.trainable and tree.nodes[node.parent].finish is FinishReason.SEGMENT
        if any(mask.any() for mask in masks):
            found += [own for _, own in forwarded(bench, bench.backend.policy, tree, masks, temperature, entropy=True)]
    return np.concatenate(found)
