"""Advantage of every trainable node; 0 for the others. One number a segment, the same for all its tokens."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from spo_core.tree import RolloutTree

STD_EPSILON = 1e-8


def difference(tree: RolloutTree, values: np.ndarray) -> np.ndarray:
    """A = V(child) - V(parent) (paper equation 4; reference facts 1.1 step 7 and 1.3, there called "rloo").

    Where the parent's value was not estimated, A = 0: the reference's rule for the tokens before the first cutpoint.
    """
    advantages = np.zeros(len(tree.nodes))
    for index, node in enumerate(tree.nodes):
        if node.trainable and not math.isnan(values[node.parent]):
            advantages[index] = values[index] - values[node.parent]
    return advantages


def leave_one_out(tree: RolloutTree, values: np.ndarray) -> np.ndarray:
    """A = V(child) - mean of its siblings' values without its own; 0 for an only child (RLOO, reference facts 1.4)."""

    def centre(group: np.ndarray) -> np.ndarray:
        if len(group) == 1:
            return np.zeros(1)
        return group - (group.sum() - group) / (len(group) - 1)

    return _by_siblings(tree, values, centre)


def group_normalized(tree: RolloutTree, values: np.ndarray) -> np.ndarray:
    """A = (V(child) - mean) / (population std + 1e-8) over siblings (GRPO, reference facts 1.4)."""

    def normalize(group: np.ndarray) -> np.ndarray:
        if np.ptp(group) == 0:  # the mean of equal values may be off by a bit, which a tiny std would blow up
            return np.zeros(len(group))
        return (group - group.mean()) / (group.std() + STD_EPSILON)

    return _by_siblings(tree, values, normalize)


def _by_siblings(tree: RolloutTree, values: np.ndarray, advantage: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    advantages = np.zeros(len(tree.nodes))
    for children in tree.children:
        group = [c for c in children if tree.nodes[c].trainable]
        if group:
            advantages[group] = advantage(values[group])
    return advantages


ADVANTAGES = {"difference": difference, "leave_one_out": leave_one_out, "group_normalized": group_normalized}
