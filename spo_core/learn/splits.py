"""Dividing the trees of an optimizer step into forward passes and among ranks; the sum stays the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spo_core.learn.objective import WeightedTree
from spo_core.learn.tree_batch import needed_nodes

Part = list[WeightedTree]


def divide(trees: Sequence[WeightedTree], budget: int, ranks: int = 1) -> list[list[Part]]:
    """Forward passes of every rank, each within ``budget`` tokens; as many passes on each (empty ones at the end).

    A tree beyond the budget is computed as several that repeat the ancestors they share. A single path that exceeds the
    budget is a pass of its own.
    """
    if ranks > 1:
        total = sum(forwarded_tokens(tree) for tree in trees)
        budget = min(budget, -(-total // ranks))
    pieces = [piece for tree in trees for piece in split_tree(tree, budget)]
    parts: list[tuple[int, Part]] = []
    for piece in pieces:
        tokens = forwarded_tokens(piece)
        if not parts or parts[-1][0] + tokens > budget:
            parts.append((0, []))
        parts[-1] = (parts[-1][0] + tokens, [*parts[-1][1], piece])
    loads = [0] * ranks
    shares: list[list[Part]] = [[] for _ in range(ranks)]
    for tokens, part in sorted(parts, key=lambda item: -item[0]) if ranks > 1 else parts:
        rank = loads.index(min(loads))
        loads[rank] += tokens
        shares[rank].append(part)
    passes = max(len(share) for share in shares)
    return [share + [[] for _ in range(passes - len(share))] for share in shares]


def smallest(shares: Sequence[Sequence[Part]]) -> Part:
    """What a rank without a part computes in vain, to keep in step with the others."""
    return min((part for share in shares for part in share if part), key=lambda p: sum(map(forwarded_tokens, p)))


def forwarded_tokens(tree: WeightedTree) -> int:
    """Tokens of the trained nodes and their ancestors, as ``tree_batch.layout`` forwards them."""
    needed, below = needed_nodes(tree.tree, tree.masks)
    nodes = tree.tree.nodes
    return sum(len(nodes[i].token_ids) - (not below[i]) for i in np.flatnonzero(needed))


def split_tree(tree: WeightedTree, budget: int) -> list[WeightedTree]:
    """Trees with disjoint trained nodes, each within the budget where one path allows it; depth-first, so that nodes
    that share ancestors stay together."""
    if forwarded_tokens(tree) <= budget:
        return [tree]
    groups: list[list[int]] = []
    inside: set[int] = set()
    size = 0
    for index in _depth_first(tree):
        if not tree.masks[index].any():
            continue
        path = tree.tree.path(index)
        cost = sum(len(tree.tree.nodes[i].token_ids) for i in path if i not in inside)
        if not groups or size + cost > budget:
            groups.append([])
            inside, size = set(), 0
            cost = sum(len(tree.tree.nodes[i].token_ids) for i in path)
        groups[-1].append(index)
        inside.update(path)
        size += cost
    return [tree.restricted(nodes) for nodes in groups]


def _depth_first(tree: WeightedTree) -> list[int]:
    order, stack = [], [0]
    while stack:
        index = stack.pop()
        order.append(index)
        stack += reversed(tree.tree.children[index])
    return order
