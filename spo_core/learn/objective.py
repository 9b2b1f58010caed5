"""What an optimizer step sums: per trained token an advantage, a weight of the policy loss and a weight of the KL.

The loss of a step is the sum over its tokens of weight x token loss. Normalisation and whitening are decided here,
once, for the whole step; so however its trees are divided among forward passes and ranks, the sum is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from spo_core.config import LearnParams
from spo_core.credit import Credit, by_node
from spo_core.credit.pairs import CreditedTree
from spo_core.learn.tree_batch import TrainedSegments
from spo_core.tree import RolloutTree

WHITENING_EPSILON = 1e-8


@dataclass(frozen=True, eq=False, slots=True)
class WeightedTree:
    """A tree as one optimizer step trains it. ``pair`` is the index of its (tree, credit) in the iteration's list.

    The other fields have one array [tokens of the node] per node: ``masks`` bool, True where the token's log-prob is
    needed; advantages and weights float32.
    """

    pair: int
    tree: RolloutTree
    masks: tuple[np.ndarray, ...]
    advantages: tuple[np.ndarray, ...]
    policy_weights: tuple[np.ndarray, ...]
    kl_weights: tuple[np.ndarray, ...]

    @property
    def segments(self) -> TrainedSegments:
        return TrainedSegments(self.tree, self.masks)

    def restricted(self, nodes: Sequence[int]) -> WeightedTree:
        """The same tree with only ``nodes`` trained."""
        kept = set(nodes)
        return replace(self, masks=tuple(m if i in kept else np.zeros_like(m) for i, m in enumerate(self.masks)))


@dataclass(frozen=True, slots=True)
class Episode:
    """Trained nodes of a tree that are one sequence in the published code's batches, its *episode*."""

    pair: int
    nodes: tuple[int, ...]


def counted_masks(credit: Credit, params: LearnParams) -> tuple[np.ndarray, ...]:
    """Tokens that the loss's normaliser counts, bool [tokens] per node: those in the mask and, with
    ``learn.zero_advantage`` drop, with an advantage (docs/reference.md 1.3: the filter of the tree's edges)."""
    if params.zero_advantage == "keep":
        return credit.masks
    return tuple(m & (a != 0) if m.any() else m for m, a in zip(credit.masks, credit.advantages, strict=True))


def episodes_of(pair: int, tree: RolloutTree, masks: Sequence[np.ndarray]) -> list[Episode]:
    """Episodes of tree number ``pair`` that have a counted token.

    A segment with siblings (an edge of SPO-tree) is an episode of its own. One without continues its parent's episode,
    so a response that was cut into segments (SPO-chain) is one episode.
    """
    trainable = [node.trainable for node in tree.nodes]
    siblings = [sum(trainable[c] for c in children) for children in tree.children]
    of: list[int] = [-1] * len(tree.nodes)
    found: list[list[int]] = []
    for index, node in enumerate(tree.nodes[1:], start=1):
        if not trainable[index]:
            continue
        if siblings[node.parent] == 1 and of[node.parent] >= 0:
            of[index] = of[node.parent]
        else:
            of[index] = len(found)
            found.append([])
        if masks[index].any():
            found[of[index]].append(index)
    return [Episode(pair, tuple(nodes)) for nodes in found if nodes]


def plan_epoch(
    pairs: Sequence[CreditedTree], params: LearnParams, rng: np.random.Generator
) -> list[list[WeightedTree]]:
    """Divide the pairs into an epoch's optimizer steps; steps in which no token changes anything are left out.

    By batch (paper): trees are shuffled and divided evenly among the steps, each normalised over all its tokens.
    By micro-batch (docs/reference.md 2.1): episodes are shuffled and divided among the steps, and each step into
    micro-batches of ``params.micro_batch`` episodes.
    """
    masks = [counted_masks(credit, params) for _, credit in pairs]
    episodes = [e for i, (tree, _) in enumerate(pairs) for e in episodes_of(i, tree, masks[i])]
    by_micro_batch = "micro_batch" in (params.normalization, params.whitening)
    if by_micro_batch:
        units = [[e] for e in episodes]
    else:
        grouped: dict[int, list[Episode]] = {}
        for episode in episodes:
            grouped.setdefault(episode.pair, []).append(episode)
        units = list(grouped.values())
    if not units:
        return []
    steps = np.array_split(rng.permutation(len(units)), min(params.optimizer_steps, len(units)))
    planned = [_weighted(pairs, masks, [e for u in step for e in units[u]], params) for step in steps]
    return [step for step in planned if step]


def _weighted(
    pairs: Sequence[CreditedTree], masks: Sequence[tuple[np.ndarray, ...]], episodes: list[Episode], params: LearnParams
) -> list[WeightedTree]:
    """The trees of one optimizer step."""
    micro_batches = [episodes]
    if params.micro_batch is not None and "micro_batch" in (params.normalization, params.whitening):
        size = params.micro_batch
        micro_batches = [episodes[i : i + size] for i in range(0, len(episodes), size)]
    lengths = {e: sum(int(masks[e.pair][n].sum()) for n in e.nodes) for e in episodes}
    tokens = sum(lengths.values())
    by_sequence = params.kl.type == "penalty" and params.kl.aggregation == "sequence"
    trees: dict[int, WeightedTree] = {}
    for micro_batch in micro_batches:
        counted = [(e.pair, n, e) for e in micro_batch for n in e.nodes]
        own = sum(lengths[e] for e in micro_batch)
        shift, scale = 0.0, 1.0
        if params.whitening == "micro_batch":
            shift, scale = whitening(np.concatenate([pairs[p][1].advantages[n][masks[p][n]] for p, n, _ in counted]))
        for p, n, episode in counted:
            match params.normalization:
                case "batch":
                    per_token = 1 / tokens
                case "episode":
                    per_token = 1 / (lengths[episode] * len(episodes))
                case "constant":
                    assert params.episode_tokens is not None
                    per_token = 1 / (params.episode_tokens * len(episodes))
                case "micro_batch":
                    per_token = 1 / (own * len(micro_batches))
            if p not in trees:
                trees[p] = _empty(p, pairs[p][0])
            tree = trees[p]
            mask = masks[p][n]
            tree.advantages[n][mask] = (pairs[p][1].advantages[n][mask] - shift) * scale
            tree.policy_weights[n][mask] = per_token
            tree.kl_weights[n][mask] = 1 / len(episodes) if by_sequence else per_token
            # without an advantage a token only matters for the KL
            tree.masks[n][:] = mask if params.kl.type == "penalty" else mask & (tree.advantages[n] != 0)
    return [tree for _, tree in sorted(trees.items()) if any(mask.any() for mask in tree.masks)]


def unweighted(pair: int, tree: RolloutTree, credit: Credit, params: LearnParams) -> WeightedTree:
    """The tree with weight 1 at every counted token that has an advantage: its loss is the plain sum over tokens."""
    masks = tuple(mask & (own != 0) for mask, own in zip(counted_masks(credit, params), credit.advantages, strict=True))
    ones = tuple(mask.astype(np.float32) for mask in masks)
    return replace(_empty(pair, tree), masks=masks, advantages=credit.advantages, policy_weights=ones)


def whitening(advantages: np.ndarray) -> tuple[float, float]:
    """Mean and 1 / sqrt(unbiased variance + 1e-8) of advantages [tokens] (docs/reference.md 2.2).

    With a single token the published code divides by zero; here its variance is 0 and its whitened advantage 0.
    """
    values = advantages.astype(np.float64)
    variance = float(values.var(ddof=1)) if len(values) > 1 else 0.0
    return float(values.mean()), (variance + WHITENING_EPSILON) ** -0.5


def _empty(pair: int, tree: RolloutTree) -> WeightedTree:
    def zeros(kind: type) -> tuple[np.ndarray, ...]:
        return by_node(np.zeros(int(tree.lengths.sum()), kind), tree.lengths)

    return WeightedTree(pair, tree, zeros(bool), zeros(np.float32), zeros(np.float32), zeros(np.float32))
