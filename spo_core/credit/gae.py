"""Generalised advantage estimation (arXiv 1506.02438, equation 16) over segments or tokens of a tree, undiscounted.

Along a chain it is the published sum of lambda^l delta_(t+l). Where a tree branches, what follows is the mean over the
trained branches; that is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spo_core.tree import RolloutTree


def segment_gae(tree: RolloutTree, values: np.ndarray, decay: float) -> np.ndarray:
    """A(node) = V(node) - V(parent) + decay * mean A(trained children), float64 [nodes].

    ``decay`` is lambda: with 0 this is ``difference``, with 1 the mean return of the leaves below (branches weigh the
    same) less V(parent). A = 0 where the parent's value was not estimated (NaN), as in ``difference``.
    """
    following = np.zeros(len(tree.nodes))
    for index in range(len(tree.nodes) - 1, 0, -1):
        node = tree.nodes[index]
        if node.trainable:
            below = [following[c] for c in tree.children[index] if tree.nodes[c].trainable]
            following[index] = values[index] - values[node.parent] + decay * (np.mean(below) if below else 0.0)
    return np.where(np.isnan(following), 0.0, following)


def token_gae(tree: RolloutTree, before: Sequence[np.ndarray], decay: float) -> tuple[np.ndarray, ...]:
    """A of every token: per node float64 [tokens of the node], 0 for nodes that are not trained.

    ``before``, per node [tokens], is the value of the state before each token. The value behind a leaf's last token is
    its reward, behind another node's last token the mean of its trained children's first values: these are one state.
    """
    found = [np.zeros(len(node.token_ids)) for node in tree.nodes]
    for index in range(len(tree.nodes) - 1, 0, -1):
        node = tree.nodes[index]
        if not node.trainable:
            continue
        below = [c for c in tree.children[index] if tree.nodes[c].trainable]
        after = float(np.mean([before[c][0] for c in below])) if below else node.reward
        following = float(np.mean([found[c][0] for c in below])) if below else 0.0
        for t in range(len(node.token_ids) - 1, -1, -1):
            following = after - before[index][t] + decay * following
            found[index][t] = following
            after = before[index][t]
    return tuple(found)
