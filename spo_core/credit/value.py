"""Value estimators: V of the state at the end of every node, from rewards at the leaves; NaN where not estimated."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from spo_core.config import AdaptiveMonteCarlo, Critic, CustomParams, GoldAnswer, MonteCarlo, NoValue, TreeMean
from spo_core.config.credit import Value
from spo_core.credit.estimators import estimated
from spo_core.errors import TrainingError
from spo_core.tree import RolloutTree


class ValueEstimator(Protocol):
    """The signature of the function that ``credit.value.path`` names."""

    def __call__(self, tree: RolloutTree) -> np.ndarray:
        """Return the value of the state at the end of every node, [nodes]; all leaves have rewards.

        NaN says that there is none, which is refused at both ends of a trained node, unless one is the prompt. No value
        rollouts are sampled for it.
        """
        ...


def node_values(tree: RolloutTree, params: Value, before: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """Values of all nodes, float64 [nodes], by the estimator chosen; ``before`` are those of a critic or of the
    right answer's probability, see ``given_values``.

    Raises TrainingError where a custom estimator fails, and where such values are asked for and not given.
    """
    match params:
        case TreeMean():
            return tree_mean(tree)
        case MonteCarlo():
            return monte_carlo(tree)
        case AdaptiveMonteCarlo():
            return shared_monte_carlo(tree)
        case Critic() | GoldAnswer():
            if before is None:
                raise TrainingError(
                    f"credit.value {params.type}: a run's own networks compute it, so trees alone have no values here; "
                    "choose credit.value tree_mean or monte_carlo"
                )
            return given_values(tree, before)
        case NoValue():
            return rewards_only(tree)
        case CustomParams():
            return estimated("credit.value", params, ValueEstimator, tree)


def check_values(tree: RolloutTree, values: np.ndarray, params: Value) -> None:
    """Raise TrainingError, saying what to do, for the first node without a value that an advantage needs.

    Responses without a reward are named first, as values above them are missing because of them. The prompt needs no
    value (docs/reference.md 1.1 step 7).
    """
    whole, nodes, children = isinstance(params, NoValue), tree.nodes, tree.children
    missing = [i for i in np.flatnonzero(~np.isfinite(values)).tolist() if i]
    ungraded = [i for i in missing if not children[i] and (nodes[i].trainable or not whole)]
    unvalued = [i for i in missing if children[i] and any(nodes[k].trainable for k in (i, *children[i]))]
    if not ungraded and not unvalued:
        return
    if isinstance(params, CustomParams):
        node = min([*ungraded, *unvalued])
        why = f"credit.value: {params.path} gave node {node} the value {values[node]}; an advantage needs a finite one"
    elif ungraded:
        why = f"node {ungraded[0]} ends a response and has no reward; grade it"
    elif whole:
        why = (
            f"node {unvalued[0]} goes on below, and credit.value none compares whole responses: give trees with one "
            "segment a response (credit.partition whole samples such), or choose credit.value tree_mean"
        )
    else:
        why = (
            f"node {unvalued[0]} goes on below and has no value rollouts (children with trainable false) for "
            f"credit.value {params.type} to average: add them, or choose credit.value tree_mean"
        )
    raise TrainingError((f"tree of question {tree.question_id!r}, " if tree.question_id else "") + why)


def tree_mean(tree: RolloutTree) -> np.ndarray:
    """V(leaf) = its reward, V(node) = unweighted mean of its children's values; float64 [nodes]. SPO-tree: paper
    section 4.2, docs/reference.md 1.3."""
    values = np.array([node.reward for node in tree.nodes], np.float64)
    for index in range(len(tree.nodes) - 1, -1, -1):
        if tree.children[index]:
            values[index] = np.mean([values[c] for c in tree.children[index]])
    return values


def response_means(tree: RolloutTree, of: Sequence[float] | None = None) -> np.ndarray:
    """Mean reward of the responses that pass through each node, float64 [nodes], or mean of ``of`` [nodes] at their
    ends; value rollouts count nothing, and continuations of a node weigh the same."""
    means = [node.reward for node in tree.nodes] if of is None else list(of)
    for index in range(len(tree.nodes) - 1, -1, -1):
        below = [means[c] for c in tree.children[index] if tree.nodes[c].trainable]
        if below:
            means[index] = sum(below) / len(below)
    return np.array(means, np.float64)


def monte_carlo(tree: RolloutTree) -> np.ndarray:
    """V(state) = mean reward of its value rollouts (children that are not trained); float64 [nodes].

    Nodes that end in equal states, by token ids, share the value rollouts of all of them. The last segment of a
    trajectory has its true reward, a state without value rollouts NaN: the prompt is valued only where a cutpoint
    lies right behind it. SPO-chain, docs/reference.md 1.1 step 6 and 1.1 step 7; the published code compares texts.
    """
    values = np.array([node.reward for node in tree.nodes], np.float64)
    states = {i: tokens.tobytes() for i, tokens in tree.completions() if tree.children[i]}
    rewards: dict[bytes, list[float]] = {state: [] for state in states.values()}
    for index, state in sorted(states.items()):
        rewards[state] += [tree.nodes[c].reward for c in tree.children[index] if not tree.nodes[c].trainable]
    means = {state: float(np.mean(pooled)) if pooled else math.nan for state, pooled in rewards.items()}
    for index, state in states.items():
        values[index] = means[state]
    return values


def shared_monte_carlo(tree: RolloutTree) -> np.ndarray:
    """V(state) from all value rollouts of the question that pass through it, not only its own fan; float64 [nodes].

    A rollout that began at an earlier state and sampled exactly the tokens up to this one is a sample from this one
    too, and equal states of several trajectories are one state. V(state) is the mean over these rollouts of what each
    meets next: the value of the next state on its path or, where there is none, its reward. That is the
    maximum-likelihood value in the prefix tree of states and rollouts, as ``tree_mean`` is in a sampled tree. Neither
    the paper nor its code shares rollouts beyond equal states; ``benchmarks/adaptive_values.py`` measures the gain.

    Last segments, and a prompt that was not valued, are treated as in ``monte_carlo``.
    """
    values = np.array([node.reward for node in tree.nodes], np.float64)
    responses = {i: tokens.astype(">i4").tobytes() for i, tokens in tree.completions()}  # big-endian sorts by token
    states: dict[bytes, list[int]] = {}  # tokens of a response so far -> the nodes that end there
    rollouts: list[int] = []
    for index, (node, children) in enumerate(zip(tree.nodes, tree.children, strict=True)):
        if children:
            values[index] = math.nan
            if index or not all(tree.nodes[c].trainable for c in children):
                states.setdefault(responses[index], []).append(index)
        elif index and not node.trainable:
            rollouts.append(index)
    next_met = values[rollouts]  # what each rollout meets next; states are visited from the longest to the shortest
    lengths = np.array([len(responses[i]) for i in rollouts], np.int64)
    begins = lengths - 4 * tree.lengths[rollouts]
    order = np.array(sorted(range(len(rollouts)), key=lambda k: responses[rollouts[k]]), np.int64)
    ordered = [responses[rollouts[k]] for k in order.tolist()]
    for state in sorted(states, key=len, reverse=True):
        alike = order[bisect_left(ordered, state) : bisect_left(ordered, state + b"\xff")]  # that begin with it
        through = np.sort(alike[(begins[alike] <= len(state)) & (lengths[alike] > len(state))])
        if len(through):
            values[states[state]] = next_met[through] = np.mean(next_met[through])
    return values


def rewards_only(tree: RolloutTree) -> np.ndarray:
    """Rewards at the leaves, NaN above, for advantages that compare whole responses (GRPO, RLOO); float64 [nodes]."""
    return np.array([node.reward for node in tree.nodes], np.float64)


def given_values(tree: RolloutTree, before: Sequence[np.ndarray]) -> np.ndarray:
    """Rewards at the leaves, values of states that were computed elsewhere above; float64 [nodes].

    ``before``, per node [tokens], is the value of the state before each token; a node's end has that of its children's
    first tokens.
    """
    values = np.array([node.reward for node in tree.nodes], np.float64)
    for index, children in enumerate(tree.children):
        if children:
            values[index] = np.mean([before[c][0] for c in children])
    return values
