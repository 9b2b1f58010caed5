"""Per-token quantities of one forward pass, in the order of its batch's trained tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spo_core.learn.objective import WeightedTree
from spo_core.learn.splits import ForwardBatch
from spo_core.learn.tree_batch import TreeBatch


@dataclass(frozen=True, eq=False, slots=True)
class PassTokens:
    """Tensors of one forward pass, each [trained tokens] in the batch's order."""

    old: Tensor
    advantages: Tensor
    policy_weights: Tensor
    kl_weights: Tensor
    fresh: Tensor  # bool: sampled by the policy that this iteration began with
    segment: Tensor  # number of the token's segment within the pass


def pass_tokens(tree_batch: TreeBatch, forward_batch: ForwardBatch, began: int) -> PassTokens:
    """Collect what the loss takes beside log-probs, on the batch's device; ``began``: the fresh policy version."""
    device = tree_batch.input_ids.device
    counts = torch.tensor([int(forward_batch[i].masks[node].sum()) for i, node in tree_batch.order], dtype=torch.long)
    fresh = torch.tensor([forward_batch[i].tree.policy_version == began for i, _ in tree_batch.order], dtype=torch.bool)
    return PassTokens(
        per_token(tree_batch, forward_batch, lambda tree, i: tree.tree.nodes[i].logprobs).to(device),
        per_token(tree_batch, forward_batch, lambda tree, i: tree.advantages[i]).to(device),
        per_token(tree_batch, forward_batch, lambda tree, i: tree.policy_weights[i]).to(device),
        per_token(tree_batch, forward_batch, lambda tree, i: tree.kl_weights[i]).to(device),
        fresh.repeat_interleave(counts).to(device),
        torch.arange(len(counts)).repeat_interleave(counts).to(device),
    )


def per_token(
    tree_batch: TreeBatch, forward_batch: ForwardBatch, values: Callable[[WeightedTree, int], np.ndarray]
) -> Tensor:
    """A per-token quantity of all trained tokens, in the batch's order; float32."""
    chosen = [values(forward_batch[i], node)[forward_batch[i].masks[node]] for i, node in tree_batch.order]
    return torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *chosen]).astype(np.float32))


def measured_gaps(tree_batch: TreeBatch, forward_batch: ForwardBatch, logprobs: Tensor, began: int) -> Tensor:
    """|trainer's - engine's log-prob| of measured tokens in fresh trees; ``logprobs`` [measured tokens]: trainer's."""
    places = tree_batch.measured.places if tree_batch.measured is not None else ()
    fresh = [np.full(len(tokens), forward_batch[i].tree.policy_version == began) for i, _, tokens in places]
    old = [forward_batch[i].tree.nodes[node].logprobs[tokens] for i, node, tokens in places]
    sampled = torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *old])).to(logprobs.device)
    return (logprobs - sampled).abs()[torch.from_numpy(np.concatenate([np.zeros(0, bool), *fresh])).to(logprobs.device)]


def segments_beyond(ratio: Tensor, segment: Tensor, limit: float | None) -> Tensor:
    """Bool [segments]: whether a segment's mean ratio over its trained tokens exceeds the limit."""
    count = int(segment[-1]) + 1 if len(segment) else 0
    if limit is None:
        return torch.zeros(count, dtype=torch.bool, device=ratio.device)
    totals = torch.zeros(count, device=ratio.device).index_add_(0, segment, ratio)
    sizes = torch.zeros(count, device=ratio.device).index_add_(0, segment, torch.ones_like(ratio))
    return totals / sizes > limit
