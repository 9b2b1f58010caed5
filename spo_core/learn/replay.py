"""The replay buffer: segments that wait to be trained.

Each segment leaves the buffer once, in one of three counted ways: drawn, expired with age, or, under the published rule
alone, discarded. The published code loses its buffer on resume (docs/reference.md 1.3 and 6 item 9); checkpoints here
hold it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from spo_core.config import LearnParams
from spo_core.credit import Credit, pruned_pair
from spo_core.credit.pairs import CreditedTree, read_pairs, write_pairs
from spo_core.learn.objective import counted_masks
from spo_core.tree import RolloutTree

Unit = tuple[int, tuple[int, ...]]  # index of an entry, and nodes of its tree that are drawn together


class ReplayBuffer:
    """Credited trees, pruned to what their waiting segments need; their masks hold only segments that wait."""

    def __init__(self, params: LearnParams) -> None:
        self.params = params
        self.entries: list[CreditedTree] = []

    def add(self, trees: Sequence[RolloutTree], credits: Sequence[Credit]) -> int:
        """Add every segment that counts in training; returns how many."""
        added = 0
        for tree, credit in zip(trees, credits, strict=True):
            nodes = segments(counted_masks(credit, self.params))
            self._keep(tree, credit, nodes)
            added += len(nodes)
        return added

    def draw(self, iteration: int, rng: np.random.Generator) -> tuple[list[CreditedTree], dict[str, float]]:
        """Draw the segments to train now; returns trees whose masks hold nothing else, and counts of what happened.

        First, segments older than ``max_age`` iterations expire. Then whole sibling groups (or single segments) are
        drawn: up to ``per_question`` segments of each question, and of these up to ``segments`` in all. Under rule
        ``fresh`` both draws take the newest first, at random within an iteration, and what is not drawn waits. Under
        rule ``reference`` both draw at random, and what the second does not draw is lost. A group that exceeds what is
        left of a cap is passed over; if all do, the smallest is drawn.
        """
        replay, fresh = self.params.replay, self.params.replay.rule == "fresh"
        expired = self._expire(iteration - replay.max_age)
        ages = [iteration - tree.iteration for tree, _ in self.entries]
        questions: dict[str, list[Unit]] = {}
        for entry, (tree, credit) in enumerate(self.entries):
            for nodes in self._units(tree, segments(credit.masks)):
                questions.setdefault(tree.question_id, []).append((entry, nodes))

        def some(units: list[Unit], limit: int | None) -> list[Unit]:
            if limit is None or _size(units) <= limit:
                return units
            order = rng.permutation(len(units)).tolist()
            if fresh:
                order.sort(key=lambda at: ages[units[at][0]])
            return _fill(units, limit, order)

        sampled = [unit for units in questions.values() for unit in some(units, replay.per_question)]
        chosen = some(sampled, replay.segments)
        taken, gone = _nodes(chosen), _nodes(chosen if fresh else sampled)
        drawn: list[CreditedTree] = []
        kept, self.entries = self.entries, []
        for entry, (tree, credit) in enumerate(kept):
            if entry in taken:
                drawn.append(pruned_pair(tree, credit, taken[entry]))
            if entry in gone:
                self._keep(tree, credit, set(segments(credit.masks)) - gone[entry])
            else:
                self.entries.append((tree, credit))
        counts: dict[str, float] = {"drawn": _size(chosen), "expired": expired, "waiting": self.waiting}
        if not fresh:
            counts["discarded"] = _size(sampled) - _size(chosen)
        if chosen:
            of_segments = [ages[entry] for entry, nodes in chosen for _ in nodes]
            counts |= {"age_mean": float(np.mean(of_segments)), "age_max": max(of_segments)}
        return drawn, counts

    @property
    def waiting(self) -> int:
        """Segments in the buffer."""
        return sum(len(segments(credit.masks)) for _, credit in self.entries)

    def save(self, folder: Path) -> None:
        write_pairs(folder, self.entries)

    def load(self, folder: Path) -> None:
        self.entries = read_pairs(folder)

    def _keep(self, tree: RolloutTree, credit: Credit, nodes: Collection[int]) -> None:
        if nodes:
            self.entries.append(pruned_pair(tree, credit, nodes))

    def _expire(self, last_expired: int) -> int:
        old = [(tree, credit) for tree, credit in self.entries if tree.iteration <= last_expired]
        self.entries = [(tree, credit) for tree, credit in self.entries if tree.iteration > last_expired]
        return sum(len(segments(credit.masks)) for _, credit in old)

    def _units(self, tree: RolloutTree, nodes: Sequence[int]) -> list[tuple[int, ...]]:
        """Group the nodes that are drawn together: siblings, with the unbranched segments that follow each."""
        if self.params.replay.unit == "segments":
            return [(index,) for index in nodes]
        trainable = [node.trainable for node in tree.nodes]
        several = [sum(trainable[c] for c in children) > 1 for children in tree.children]
        top = [0] * len(tree.nodes)  # of every node, the parent of the group that it belongs to
        for index, node in enumerate(tree.nodes[1:], start=1):
            parent = node.parent
            top[index] = parent if several[parent] or parent == 0 else top[parent]
        groups: dict[int, list[int]] = {}
        for index in nodes:
            groups.setdefault(top[index], []).append(index)
        return [tuple(group) for group in groups.values()]


def segments(masks: Sequence[np.ndarray]) -> list[int]:
    """Nodes with a token in the mask."""
    return [index for index, mask in enumerate(masks) if mask.any()]


def _size(units: Sequence[Unit]) -> int:
    return sum(len(nodes) for _, nodes in units)


def _nodes(units: Sequence[Unit]) -> dict[int, set[int]]:
    """Group the units' nodes by entry."""
    found: dict[int, set[int]] = {}
    for entry, nodes in units:
        found.setdefault(entry, set()).update(nodes)
    return found


def _fill(units: list[Unit], limit: int, order: Sequence[int]) -> list[Unit]:
    """Choose units in ``order`` while ``limit`` segments hold them, or the smallest; returned in their own order."""
    chosen: list[int] = []
    size = 0
    for at in order:
        if size + len(units[at][1]) <= limit:
            chosen.append(at)
            size += len(units[at][1])
    if not chosen:
        chosen = [min(order, key=lambda at: len(units[at][1]))]
    return [units[at] for at in sorted(chosen)]
