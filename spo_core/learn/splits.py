"""Divides the trees of an optimizer step into forward passes and among ranks; the sum of losses stays the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spo_core.learn.objective import WeightedTree
from spo_core.learn.tree_batch import needed_nodes

ForwardBatch = list[WeightedTree]


def divide(trees: Sequence[WeightedTree], budget: int, ranks: int = 1) -> list[list[ForwardBatch]]:
    """The forward passes of every rank, each of at most ``budget`` tokens; empty ones fill up ranks with fewer passes.

    A tree beyond the budget is computed as several that repeat the ancestors they share. A single path that exceeds the
    budget is a pass of its own.
    """
    if ranks > 1:
        total = sum(forwarded_tokens(tree) for tree in trees)
        budget = min(budget, -(-total // ranks))
    pieces = [piece for tree in trees for piece in split_tree(tree, budget)]
    batches: list[tuple[int, ForwardBatch]] = []
    for piece in pieces:
        tokens = forwarded_tokens(piece)
        if not batches or batches[-1][0] + tokens > budget:
            batches.append((0, []))
        batches[-1] = (batches[-1][0] + tokens, [*batches[-1][1], piece])
    loads = [0] * ranks
    shares: list[list[ForwardBatch]] = [[] for _ in range(ranks)]
    for tokens, batch in sorted(batches, key=lambda item: -item[0]) if ranks > 1 else batches:
        rank = loads.index(min(loads))
        loads[rank] += tokens
        shares[rank].append(batch)
    passes = max(len(share) for share in shares)
    return [share + [[] for _ in range(passes - len(share))] for share in shares]


def smallest(shares: Sequence[Sequence[ForwardBatch]]) -> ForwardBatch:
    """The smallest pass. A rank computes it in place of an empty one, times 0, to keep in step with the others."""
    return min(
        (batch for share in shares for batch in share if batch), key=lambda batch: sum(map(forwarded_tokens, batch))
    )


def forwarded_tokens(tree: WeightedTree) -> int:
    """Tokens that trained nodes and their ancestors forward, before ``tree_batch.layout`` merges equal prefixes."""
    needed, below = needed_nodes(tree.tree, tree.masks)
    nodes = tree.tree.nodes
    return sum(len(nodes[i].token_ids) - (not below[i]) for i in np.flatnonzero(needed))


def split_tree(tree: WeightedTree, budget: int) -> list[WeightedTree]:
    """Split a tree into trees with disjoint trained nodes, each within ``budget`` tokens or a single path.

    Nodes are taken depth-first, so that those that share ancestors stay together.
    """
    if forwarded_tokens(tree) <= budget:
        return [tree]
    nodes, lengths = tree.tree.nodes, tree.tree.lengths.tolist()
    from_root = [length + lengths[0] for length in tree.tree.completion_lengths]
    group = [0] * len(nodes)  # the last group that forwards the node, counted from 1
    groups: list[list[int]] = []
    size = 0
    for index in tree.tree.depth_first:
        if not tree.masks[index].any():
            continue
        above, cost = index, 0
        while above >= 0 and group[above] != len(groups):
            cost += lengths[above]
            above = nodes[above].parent
        longer = bool(groups) and above == groups[-1][-1] and size == from_root[above]  # one path, which goes on
        if not groups or (size + cost > budget and not longer):
            groups.append([])
            size, cost, above = 0, from_root[index], -1
        groups[-1].append(index)
        size += cost
        inside = index
        while inside != above:
            group[inside] = len(groups)
            inside = nodes[inside].parent
    return [tree.restricted(nodes) for nodes in groups]
