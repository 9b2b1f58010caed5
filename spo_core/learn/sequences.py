"""Losses of whole sequences, DPO-positive and DVO, as weights of their tokens' log-probs.

A sequence is a trained segment, and its log-prob S the sum over its tokens. The gradient of a loss L of such sums is
the sum of dL/dS x the gradient of S. So an optimizer step first computes the sums, without gradient, and then trains
every token of a sequence with the weight dL/dS: the gradient is exact however its trees are divided among forward
passes and ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from spo_core.config import DirectValue, DPOPositive, LearnParams
from spo_core.credit import Credit
from spo_core.credit.advantage import ROUNDING
from spo_core.credit.pairs import CreditedTree
from spo_core.errors import TrainingError
from spo_core.learn.objective import WeightedTree
from spo_core.tree import RolloutTree

TIE = 1e-4
"""Nats by which two log-probs of a sequence may differ and be equal: packed otherwise they round otherwise."""
Unit = tuple[int, tuple[int, ...]]
"""What the loss is a mean over: index of a (tree, credit), and its (accepted, rejected) nodes or its single node."""
Sums = dict[tuple[int, int], float]
"""Log-probs of sequences, in nats, by index of the (tree, credit) and node."""
Measure = Callable[[Sequence[WeightedTree]], Sums]


class SequenceLoss:
    """Plans an iteration's optimizer steps, and weighs the tokens of each by the present log-probs of its sequences.

    ``rngs`` choose among the pairs of each tree, one after the other; ``reference`` measures log-probs under the
    reference policy, once. Raises TrainingError where a sequence is partly masked, or its tokens have several
    advantages.
    """

    def __init__(
        self,
        pairs: Sequence[CreditedTree],
        params: LearnParams,
        rngs: Iterable[np.random.Generator],
        reference: Measure,
    ) -> None:
        loss = params.loss
        assert isinstance(loss, DPOPositive | DirectValue)
        self.pairs, self.params, self.loss = pairs, params, loss
        self.units: list[Unit] = []
        for index, ((tree, credit), rng) in enumerate(zip(pairs, rngs, strict=False)):
            nodes = _sequences(tree, credit)
            if isinstance(loss, DPOPositive):
                found = preferences(tree, credit, nodes, loss.margin)
                self.units += [(index, pair) for pair in _some(found, loss.pairs, rng)]
            else:
                self.units += [(index, (node,)) for node in nodes]
        self.reference = reference(self._trees(self.units))
        self._sums = dict.fromkeys(METRICS[loss.type], 0.0)
        self._seen = 0

    def plan_epoch(self, rng: np.random.Generator) -> list[list[Unit]]:
        """Divide the units, shuffled, evenly among the optimizer steps of an epoch; none where there are none."""
        if not self.units:
            return []
        parts = np.array_split(rng.permutation(len(self.units)), min(self.params.optimizer_steps, len(self.units)))
        return [[self.units[i] for i in sorted(part.tolist())] for part in parts]

    def weigh(self, step: Sequence[Unit], measure: Measure, *, summed: bool = False) -> list[WeightedTree]:
        """The trees of an optimizer step, whose plain sum of -advantage x log-prob has the gradient of its loss.

        ``measure`` gives the present log-probs. The loss is a mean over the units, or ``summed``.
        """
        trees = self._trees(step)
        sums = measure(trees)
        keys = sorted({(index, node) for index, nodes in step for node in nodes})
        places = {key: number for number, key in enumerate(keys)}
        policy = torch.tensor([sums[key] for key in keys], dtype=torch.float64, requires_grad=True)
        reference = torch.tensor([self.reference[key] for key in keys], dtype=torch.float64)
        at = torch.tensor([[places[index, node] for node in nodes] for index, nodes in step])
        if isinstance(self.loss, DPOPositive):
            losses, metrics = dpo_positive(policy[at], reference[at], self.loss)
        else:
            nodes = [(self.pairs[index], node) for index, (node,) in step]
            sampled = [tree.nodes[node].logprobs.sum(dtype=np.float64) for (tree, _), node in nodes]
            advantages = [credit.advantages[node][0] for (_, credit), node in nodes]
            before, target = (torch.tensor(np.array(values, np.float64)) for values in (sampled, advantages))
            losses, metrics = direct_value(policy[at[:, 0]], reference[at[:, 0]], before, target, self.loss)
        (losses.sum() if summed else losses.mean()).backward()
        for name, values in {"policy_loss": losses, **metrics}.items():
            self._sums[name] += float(values.detach().sum())
        self._seen += len(step)
        assert policy.grad is not None
        slopes = dict(zip(keys, policy.grad.tolist(), strict=True))
        for tree in trees:
            for node, mask in enumerate(tree.masks):
                if mask.any():
                    tree.advantages[node][:] = -slopes[tree.pair, node]
                    tree.policy_weights[node][:] = 1.0
        return trees

    def metrics(self) -> dict[str, float]:
        """Means over the pairs or sequences weighed so far."""
        return {name: total / self._seen for name, total in self._sums.items()} if self._seen else {}

    def _trees(self, units: Sequence[Unit]) -> list[WeightedTree]:
        trained: dict[int, set[int]] = {}
        for index, nodes in units:
            trained.setdefault(index, set()).update(nodes)
        return [_tree(index, *self.pairs[index], trained[index]) for index in sorted(trained)]


METRICS = {
    "dpo_positive": ("policy_loss", "preferred_share", "preference_margin"),
    "dvo": ("policy_loss", "sequence_log_ratio", "sequence_weight"),
}
"""Names of each loss's metrics."""


def dpo_positive(policy: Tensor, reference: Tensor, params: DPOPositive) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of each pair, [pairs], from log-probs of accepted and rejected sequences, [pairs, 2] (arXiv 2402.13228
    equation 3, docs/reference.md 1.4).

    Metrics: whether the accepted one gained on the rejected one, and by how many nats. Where the accepted sequence is
    as likely as under the reference policy (within TIE), as in the first step, half the penalty's slope counts (as
    torch's maximum has it, and so the published code).
    """
    ratio = policy - reference
    ratio = ratio - torch.where(ratio.abs() < TIE, ratio, 0.0).detach()
    margin = ratio[:, 0] - ratio[:, 1]
    lost = torch.maximum(torch.zeros_like(margin), -ratio[:, 0])
    loss = -logsigmoid(params.beta * (margin - params.penalty * lost))
    return loss, {"preferred_share": (margin > 0).double(), "preference_margin": margin.detach()}


def direct_value(
    policy: Tensor, reference: Tensor, sampled: Tensor, advantages: Tensor, params: DirectValue
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of each sequence from its log-probs and its advantage, all [sequences] (docs/reference.md 1.4).

    Metrics: log(policy / reference) in nats, and the importance weight.
    """
    weight = (policy.detach() - sampled).exp().clamp(max=params.cap)
    ratio = policy - reference
    loss = weight * (params.beta * ratio - advantages).square() / 2
    return loss, {"sequence_log_ratio": ratio.detach(), "sequence_weight": weight}


def preferences(tree: RolloutTree, credit: Credit, nodes: Sequence[int], margin: float) -> list[tuple[int, int]]:
    """All (accepted, rejected) siblings among ``nodes`` whose values differ by ``margin`` or more."""
    siblings: dict[int, list[int]] = {}
    for node in nodes:
        siblings.setdefault(tree.nodes[node].parent, []).append(node)
    values, least = credit.values, margin - ROUNDING
    return [(a, b) for group in siblings.values() for a in group for b in group if values[a] - values[b] > least]


def _some(found: list[tuple[int, int]], limit: int | None, rng: np.random.Generator) -> list[tuple[int, int]]:
    if limit is None or len(found) <= limit:
        return found
    return [found[i] for i in sorted(rng.choice(len(found), limit, replace=False).tolist())]


def _sequences(tree: RolloutTree, credit: Credit) -> list[int]:
    """Nodes that are trained, each as a whole."""
    found = [node for node, mask in enumerate(credit.masks) if mask.any()]
    for node in found:
        if not credit.masks[node].all() or np.ptp(credit.advantages[node]):
            raise TrainingError(
                f"tree of question {tree.question_id!r}, node {node}: a learn.loss of whole sequences needs one "
                "advantage for all of a segment's tokens, and credit.mask all"
            )
    return found


def _tree(index: int, tree: RolloutTree, credit: Credit, nodes: set[int]) -> WeightedTree:
    """The tree with ``nodes`` trained; their advantages and weights are still to be set."""
    masks = tuple(m if i in nodes else np.zeros_like(m) for i, m in enumerate(credit.masks))
    zeros = [tuple(np.zeros(len(m), np.float32) for m in masks) for _ in range(3)]
    return WeightedTree(index, tree, masks, *zeros)
