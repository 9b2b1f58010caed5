"""Value of every state (the end of every node), from rewards at the leaves. NaN: not estimated."""

from __future__ import annotations

import math

import numpy as np

from spo_core.tree import RolloutTree


def tree_mean(tree: RolloutTree) -> np.ndarray:
    """V(leaf) = its reward, V(node) = unweighted mean of its children's values; float64 [nodes].

    SPO-tree, paper section 4.2; reference facts 1.3.
    """
    values = np.array([node.reward for node in tree.nodes], np.float64)
    for index in range(len(tree.nodes) - 1, -1, -1):
        if tree.children[index]:
            values[index] = np.mean([values[c] for c in tree.children[index]])
    return values


def monte_carlo(tree: RolloutTree) -> np.ndarray:
    """V(state) = mean reward of its value rollouts (children that are not trained); float64 [nodes].

    The last segment of a trajectory has its true reward. A state without value rollouts is NaN: the prompt is valued
    only where a cutpoint lies right behind it. SPO-chain, reference facts 1.1 steps 6 and 7.
    """
    values = np.array([node.reward for node in tree.nodes], np.float64)
    for index, children in enumerate(tree.children):
        fan = [tree.nodes[c].reward for c in children if not tree.nodes[c].trainable]
        if fan:
            values[index] = np.mean(fan)
        elif children:
            values[index] = math.nan
    return values


def rewards_only(tree: RolloutTree) -> np.ndarray:
    """Rewards at the leaves, NaN above: for advantages that compare responses (GRPO, RLOO); float64 [nodes]."""
    return np.array([node.reward for node in tree.nodes], np.float64)


VALUES = {"tree_mean": tree_mean, "monte_carlo": monte_carlo, "none": rewards_only}
