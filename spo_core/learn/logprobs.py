"""Log-probs of trained tokens of an iteration's trees, or other numbers of them, without gradient; ranks share them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from spo_core.learn.backend import Backend
from spo_core.learn.objective import WeightedTree
from spo_core.learn.splits import ForwardBatch, divide, smallest
from spo_core.learn.tree_batch import TreeBatch, layout

Compute = Callable[[TreeBatch], Tensor]
"""From a batch to a float32 number for each of its trained tokens, [tokens]: log-probs, or a critic's values."""


def token_numbers(backend: Backend, trees: Sequence[WeightedTree], compute: Compute, budget: int) -> list[np.ndarray]:
    """What ``compute`` gives for every trained token, float32 [trained tokens of the node] for each node of each tree,
    in one list.

    ``budget``: most tokens of a forward pass. All ranks make the same call, and get the same numbers.
    """
    counts = [int(mask.sum()) for tree in trees for mask in tree.masks]
    offsets = np.cumsum([0, *counts])
    first = np.cumsum([0, *(len(tree.masks) for tree in trees)])  # number of each tree's first node
    places = {tree.pair: int(start) for tree, start in zip(trees, first, strict=False)}
    flat = torch.zeros(int(offsets[-1]), dtype=torch.float64, device=backend.device)
    for batch, tree_batch, numbers in _passes(backend, trees, compute, budget):
        at = 0
        for i, node in tree_batch.order:
            number = places[batch[i].pair] + node
            flat[offsets[number] : offsets[number + 1]] = numbers[at : at + counts[number]].double()
            at += counts[number]
    values = backend.total(flat).float().cpu().numpy()
    return [values[start:stop] for start, stop in pairwise(offsets.tolist())]


def sequence_logprobs(
    backend: Backend, trees: Sequence[WeightedTree], compute: Compute, budget: int
) -> dict[tuple[int, int], float]:
    """Log-probs of trained nodes, each the sum over its trained tokens, by number of the pair and node.

    ``budget`` and ranks as in ``token_numbers``.
    """
    keys = [(tree.pair, node) for tree in trees for node, mask in enumerate(tree.masks) if mask.any()]
    places = {key: number for number, key in enumerate(keys)}
    sums = torch.zeros(len(keys), dtype=torch.float64, device=backend.device)
    for batch, tree_batch, logprobs in _passes(backend, trees, compute, budget):
        lengths = torch.tensor([int(batch[i].masks[node].sum()) for i, node in tree_batch.order])
        numbers = torch.tensor([places[batch[i].pair, node] for i, node in tree_batch.order])
        sums.index_add_(0, numbers.repeat_interleave(lengths).to(sums.device), logprobs.double())
    return dict(zip(keys, backend.total(sums).tolist(), strict=True))


def _passes(
    backend: Backend, trees: Sequence[WeightedTree], compute: Compute, budget: int
) -> Iterator[tuple[ForwardBatch, TreeBatch, Tensor]]:
    """This rank's forward passes; one that only keeps it in step with the others is computed and left out."""
    if not trees:
        return
    shares = divide(trees, budget, backend.ranks)
    for batch in shares[backend.rank]:
        tree_batch = layout([tree.segments for tree in (batch or smallest(shares))], backend.device)
        with torch.no_grad():
            numbers = compute(tree_batch)
        if batch:
            yield batch, tree_batch, numbers
