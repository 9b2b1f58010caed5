"""Advantage estimators: one number per segment, float64 [nodes], 0 for nodes that are not trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np

from spo_core.config import GAE, BestOfKProgress, CustomParams, Difference, GroupNormalized, LeaveOneOut, Rejection
from spo_core.config.credit import Advantage
from spo_core.credit.estimators import estimated
from spo_core.credit.gae import segment_gae
from spo_core.credit.value import response_means
from spo_core.errors import TrainingError
from spo_core.tree import RolloutTree

ROUNDING = 1e-9  # a mean of equal values may differ from them in the last bit; that is no advantage
STD_EPSILON = 1e-8


class AdvantageEstimator(Protocol):
    """The signature of the function that ``credit.advantage.path`` names."""

    def __call__(self, tree: RolloutTree, values: np.ndarray) -> np.ndarray:
        """Return one number per node, [nodes]: finite for trained nodes, ignored for others.

        ``values`` float64 [nodes] are those of ``credit.value``, NaN where not estimated.
        """
        ...


def node_advantages(tree: RolloutTree, values: np.ndarray, params: Advantage) -> np.ndarray:
    """Advantages of all nodes, float64 [nodes], by the estimator chosen; ``values`` float64 [nodes], NaN: none.

    Raises TrainingError where an estimator of the project's own fails or gives a trained node no finite number.
    """
    match params:
        case Difference():
            return difference(tree, values)
        case LeaveOneOut():
            return leave_one_out(tree, values)
        case GroupNormalized():
            return group_normalized(tree, values)
        case BestOfKProgress():
            if params.own == "reward":
                return prover_progress(tree, values, params.k, params.weight, params.baseline)
            return best_of_k_progress(tree, values, params.k, params.weight, params.baseline)
        case GAE():
            return segment_gae(tree, values, params.lambda_)
        case Rejection():
            return rejection(tree, params.threshold, params.per_question)
        case CustomParams():
            return custom(tree, values, params)


def difference(tree: RolloutTree, values: np.ndarray) -> np.ndarray:
    """A = V(child) - V(parent) (paper equation 4; docs/reference.md 1.1 step 7 and 1.3, there called "rloo").

    V(parent) contains the child itself, so among n siblings this is (n - 1) / n of ``leave_one_out``. Where the
    parent's value was not estimated, A = 0: the reference's rule for the tokens before the first cutpoint.
    """
    advantages = np.zeros(len(tree.nodes))
    for index in _with_valued_parent(tree, values):
        advantages[index] = values[index] - values[tree.nodes[index].parent]
    return advantages


def leave_one_out(tree: RolloutTree, values: np.ndarray) -> np.ndarray:
    """A = V(child) - mean of its siblings' values, 0 for an only child (RLOO, docs/reference.md 1.4)."""

    def centre(group: np.ndarray) -> np.ndarray:
        if len(group) == 1:
            return np.zeros(1)
        return group - (group.sum() - group) / (len(group) - 1)

    return _by_siblings(tree, values, centre)


def group_normalized(tree: RolloutTree, values: np.ndarray) -> np.ndarray:
    """A = (V(child) - mean) / (population std + 1e-8) over siblings (GRPO, docs/reference.md 1.4 and 1.3 "grpo")."""

    def normalize(group: np.ndarray) -> np.ndarray:
        if np.ptp(group) == 0:  # the mean of equal values may be off by a bit, which a tiny std would blow up
            return np.zeros(len(group))
        return (group - group.mean()) / (group.std() + STD_EPSILON)

    return _by_siblings(tree, values, normalize)


def best_of_k_progress(tree: RolloutTree, values: np.ndarray, k: int, weight: float, baseline: str) -> np.ndarray:
    """A = V(child) + weight * (B(V(child)) - B(V(parent))), B(v) = 1 - (1 - v)^k: progress of a best-of-k prover.

    docs/reference.md 1.3 ("use_pav", k = 4, weight 5, no baseline); with ``baseline`` "parent", V(parent) is subtracted
    from the first term. As there, a segment counts only where (V(child) - V(parent)) + (B(V(child)) - B(V(parent))) is
    not 0, and A = 0 elsewhere: without a baseline, V(child) alone would reward segments that decided nothing. A = 0
    also where the parent's value was not estimated.
    """
    advantages = np.zeros(len(tree.nodes))
    best = 1 - (1 - values) ** k
    for index in _with_valued_parent(tree, values):
        parent = tree.nodes[index].parent
        step, progress = values[index] - values[parent], best[index] - best[parent]
        if not abs(step + progress) < ROUNDING:
            advantages[index] = (step if baseline == "parent" else values[index]) + weight * progress
    return advantages


def prover_progress(tree: RolloutTree, values: np.ndarray, k: int, weight: float, baseline: str) -> np.ndarray:
    """A = mean reward of the responses through the segment + weight * (B(V(child)) - B(V(parent))), B as above.

    Process advantage verifiers (arXiv 2410.08146: Q of the policy + alpha times the prover's advantage). ``values`` are
    of a policy whose best of k is the prover; the policy's own Q is what its responses earned. With ``baseline``
    "prompt" the mean reward of all the question's responses is subtracted. No progress is added where the parent's
    value was not estimated.
    """
    advantages = np.zeros(len(tree.nodes))
    rewards, best = response_means(tree), 1 - (1 - values) ** k
    for index, node in enumerate(tree.nodes):
        if node.trainable:
            progress = 0.0 if math.isnan(values[node.parent]) else best[index] - best[node.parent]
            advantages[index] = rewards[index] - (rewards[0] if baseline == "prompt" else 0.0) + weight * progress
    return advantages


def rejection(tree: RolloutTree, threshold: float, per_question: int | None) -> np.ndarray:
    """A = number of kept responses that pass through the segment, so that the likelihood of A is that of all of them.

    Kept are responses with a reward of ``threshold`` or more, each text of token ids once, and of these the first
    ``per_question`` (ReST-EM, arXiv 2312.06585; docs/reference.md 1.4, where texts are compared).
    """
    advantages = np.zeros(len(tree.nodes))
    kept: set[bytes] = set()
    for leaf in tree.leaves:
        node = tree.nodes[leaf]
        if not (node.trainable and node.reward >= threshold):
            continue
        response = tree.completion(leaf).tobytes()
        if response not in kept and (per_question is None or len(kept) < per_question):
            kept.add(response)
            advantages[tree.path(leaf)[1:]] += 1
    return advantages


def custom(tree: RolloutTree, values: np.ndarray, params: CustomParams) -> np.ndarray:
    """Advantages by the project's own estimator, 0 for nodes that are not trained; float64 [nodes]."""
    own = values.copy()  # the estimator may write into it
    advantages = estimated("credit.advantage", params, AdvantageEstimator, tree, own)
    trained = np.array([node.trainable for node in tree.nodes])
    wrong = np.flatnonzero(trained & ~np.isfinite(advantages))
    if len(wrong):
        raise TrainingError(
            f"credit.advantage: {params.path} gave node {wrong[0]} of question {tree.question_id!r} the advantage "
            f"{advantages[wrong[0]]}; it must be finite for every node that is trained"
        )
    return np.where(trained, advantages, 0.0)


def _with_valued_parent(tree: RolloutTree, values: np.ndarray) -> list[int]:
    return [i for i, n in enumerate(tree.nodes) if n.trainable and not math.isnan(values[n.parent])]


def _by_siblings(tree: RolloutTree, values: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    advantages = np.zeros(len(tree.nodes))
    for children in tree.children:
        group = [c for c in children if tree.nodes[c].trainable]
        if group:
            advantages[group] = function(values[group])
    return advantages
