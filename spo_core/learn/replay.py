"""Segments that wait to be trained.

Each is drawn at most once and leaves the buffer in one of two counted ways: drawn, or expired with age. The reference
draws at random, then loses what a later cut leaves over, and forgets everything on resume (reference facts 1.3, 9.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from spo_core.config import LearnParams
from spo_core.credit import Credit, read_credits, write_credits
from spo_core.learn.objective import Pair, counted_masks
from spo_core.tree import RolloutTree, read_trees, write_trees

Unit = tuple[int, tuple[int, ...]]  # (entry, nodes)


class ReplayBuffer:
    """Trees with credit whose masks hold the segments that still wait; the trees themselves are kept whole."""

    def __init__(self, params: LearnParams) -> None:
        self.params = params
        self.entries: list[Pair] = []

    def add(self, trees: Sequence[RolloutTree], credits: Sequence[Credit]) -> int:
        """Let every segment that counts in training wait; their number."""
        before = self.waiting
        for tree, credit in zip(trees, credits, strict=True):
            self._keep(tree, replace(credit, masks=_only(credit, segments(counted_masks(credit, self.params)))))
        return self.waiting - before

    def draw(self, iteration: int, rng: np.random.Generator) -> tuple[list[Pair], dict[str, float]]:
        """Segments to train now, as trees whose masks hold nothing else, and the counts of what happened.

        First those beyond ``max_age`` expire. Then, question by question, whole sibling groups (or single segments) are
        drawn at random up to ``per_question``; of these, at random up to ``segments`` in all. A group that does not fit
        waits; one that alone exceeds a cap is drawn where nothing else was.
        """
        replay = self.params.replay
        expired = self._expire(iteration - replay.max_age)
        questions: dict[str, list[Unit]] = {}
        for entry, (tree, credit) in enumerate(self.entries):
            for nodes in self._units(tree, segments(credit.masks)):
                questions.setdefault(tree.question_id, []).append((entry, nodes))
        chosen = [unit for units in questions.values() for unit in _fill(units, replay.per_question, rng)]
        chosen = _fill(chosen, replay.segments, rng)
        taken: dict[int, set[int]] = {}
        for entry, nodes in chosen:
            taken.setdefault(entry, set()).update(nodes)
        drawn: list[Pair] = []
        kept, self.entries = self.entries, []
        for entry, (tree, credit) in enumerate(kept):
            now = taken.get(entry, set())
            if now:
                drawn.append((tree, replace(credit, masks=_only(credit, now))))
            self._keep(tree, replace(credit, masks=_only(credit, set(segments(credit.masks)) - now)))
        count = sum(len(nodes) for nodes in taken.values())
        return drawn, {"drawn": count, "expired": expired, "waiting": self.waiting}

    @property
    def waiting(self) -> int:
        """Segments in the buffer."""
        return sum(len(segments(credit.masks)) for _, credit in self.entries)

    def save(self, folder: Path) -> None:
        write_trees(folder / "trees.parquet", [tree for tree, _ in self.entries])
        write_credits(folder / "credits.parquet", *zip(*self.entries, strict=True) if self.entries else ([], []))

    def load(self, folder: Path) -> None:
        trees = read_trees(folder / "trees.parquet")
        self.entries = list(zip(trees, read_credits(folder / "credits.parquet", trees), strict=True))

    def _keep(self, tree: RolloutTree, credit: Credit) -> None:
        if any(mask.any() for mask in credit.masks):
            self.entries.append((tree, credit))

    def _expire(self, last_expired: int) -> int:
        old = [(tree, credit) for tree, credit in self.entries if tree.iteration <= last_expired]
        self.entries = [(tree, credit) for tree, credit in self.entries if tree.iteration > last_expired]
        return sum(len(segments(credit.masks)) for _, credit in old)

    def _units(self, tree: RolloutTree, nodes: Sequence[int]) -> list[tuple[int, ...]]:
        """Sibling groups; segments without siblings stay with their parent's, as those of one response do."""
        if self.params.replay.unit == "segments":
            return [(index,) for index in nodes]
        groups: dict[int, list[int]] = {}
        for index in nodes:
            top = tree.nodes[index].parent
            while top > 0 and sum(tree.nodes[c].trainable for c in tree.children[top]) == 1:
                top = tree.nodes[top].parent
            groups.setdefault(top, []).append(index)
        return [tuple(group) for group in groups.values()]


def segments(masks: Sequence[np.ndarray]) -> list[int]:
    """Nodes with a token in the mask."""
    return [index for index, mask in enumerate(masks) if mask.any()]


def _only(credit: Credit, nodes: Sequence[int] | set[int]) -> tuple[np.ndarray, ...]:
    kept = set(nodes)
    return tuple(m if i in kept else np.zeros_like(m) for i, m in enumerate(credit.masks))


def _fill(units: list[Unit], limit: int | None, rng: np.random.Generator) -> list[Unit]:
    """Units up to ``limit`` segments, chosen at random, in their first order."""
    if limit is None or sum(len(nodes) for _, nodes in units) <= limit:
        return units
    chosen: list[int] = []
    size = 0
    for at in rng.permutation(len(units)).tolist():
        if size + len(units[at][1]) <= limit:
            chosen.append(at)
            size += len(units[at][1])
    if not chosen:
        chosen = [min(range(len(units)), key=lambda at: len(units[at][1]))]
    return [units[at] for at in sorted(chosen)]
