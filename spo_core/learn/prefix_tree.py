"""Merges equal prefixes of sibling segments, so that each distinct prefix of a tree is computed once.

Responses to one question often begin alike, and so do other siblings. As long as their token ids are equal, so are
their hidden states; computing these once leaves the sum of the gradients as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from spo_core.tree import RolloutTree


@dataclass(eq=False, slots=True)
class Run:
    """Tokens of a PrefixTree that follow one another without a branch: numbers ``start`` to ``stop``, excluded."""

    start: int
    stop: int
    children: dict[int, int] = field(default_factory=dict)  # first token id -> number of the run


class PrefixTree:
    """Distinct tokens of one tree's segments, numbered as they are first met; each has one predecessor.

    ``add`` takes segments, parents before their children. Time and memory grow with the tokens added.
    """

    def __init__(self, most: int) -> None:
        """``most``: tokens that may be added in all."""
        self.ids = np.zeros(most, np.int64)
        self.runs: list[Run] = [Run(0, 0)]
        self.count = 0
        self._run_of = np.zeros(most, np.int64)

    def add(self, after: int, token_ids: np.ndarray) -> np.ndarray:
        """Add a segment behind token number ``after`` (-1: at the root); returns its tokens' numbers, int64 [n]."""
        found = np.empty(len(token_ids), np.int64)
        run = int(self._run_of[after]) if after >= 0 else 0
        at, done = after + 1, 0
        while True:
            equal = self._equal(at, self.runs[run].stop, token_ids, done)
            found[done : done + equal] = np.arange(at, at + equal)
            at, done = at + equal, done + equal
            if done == len(token_ids):
                return found
            if at < self.runs[run].stop:
                self._split(run, at)
            token = int(token_ids[done])
            child = self.runs[run].children.get(token)
            if child is None:
                found[done:] = self._append(run, token_ids[done:])
                return found
            run, at = child, self.runs[child].start

    def _equal(self, at: int, stop: int, token_ids: np.ndarray, done: int) -> int:
        """How many tokens from ``at`` on within a run are those of ``token_ids`` from ``done`` on."""
        most = min(stop - at, len(token_ids) - done)
        if most <= 0:
            return 0
        differ = self.ids[at : at + most] != token_ids[done : done + most]
        first = int(differ.argmax())
        return first if differ[first] else most

    def _split(self, run: int, at: int) -> None:
        head = self.runs[run]
        tail = Run(at, head.stop, head.children)
        self._run_of[at : head.stop] = len(self.runs)
        head.stop, head.children = at, {int(self.ids[at]): len(self.runs)}
        self.runs.append(tail)

    def _append(self, run: int, token_ids: np.ndarray) -> np.ndarray:
        start, stop = self.count, self.count + len(token_ids)
        self.ids[start:stop] = token_ids
        if self.runs[run].stop == start and not self.runs[run].children:  # the run was added last: extend it
            self.runs[run].stop = stop
            self._run_of[start:stop] = run
        else:
            self.runs[run].children[int(token_ids[0])] = len(self.runs)
            self._run_of[start:stop] = len(self.runs)
            self.runs.append(Run(start, stop))
        self.count = stop
        return np.arange(start, stop)


@dataclass(frozen=True, eq=False, slots=True)
class Stretch:
    """A run of tokens to forward in which no path branches.

    ``tokens`` int64 [n] are numbers of the PrefixTree, ``parent`` is the stretch before it (-1: none), ``before`` the
    number of tokens on its path; ``first`` and ``last`` number its subtree's stretches depth-first.
    """

    tokens: np.ndarray
    parent: int
    before: int
    first: int
    last: int


def stretches(tree: PrefixTree, wanted: np.ndarray) -> list[Stretch]:
    """Stretches of the wanted tokens (bool [count]) and of all tokens before them on their paths, depth-first."""
    kept = _kept(tree, wanted)
    runs = tree.runs
    found: list[tuple[list[int], int]] = []  # runs, parent
    stack = [(0, -1)] if kept[0] else []
    while stack:
        run, parent = stack.pop()
        chain, below = [run], [c for c in runs[run].children.values() if kept[c]]
        while len(below) == 1:
            chain += below
            below = [c for c in runs[below[0]].children.values() if kept[c]]
        stack += [(child, len(found)) for child in reversed(below)]
        found.append((chain, parent))
    sizes = [1] * len(found)
    for index in range(len(found) - 1, 0, -1):
        sizes[found[index][1]] += sizes[index]
    result: list[Stretch] = []
    for index, (chain, parent) in enumerate(found):
        parts = [np.arange(runs[r].start, runs[r].start + kept[r]) for r in chain]
        tokens = parts[0] if len(parts) == 1 else np.concatenate(parts)
        before = result[parent].before + len(result[parent].tokens) if parent >= 0 else 0
        result.append(Stretch(tokens, parent, before, index, index + sizes[index] - 1))
    return result


def _kept(tree: PrefixTree, wanted: np.ndarray) -> list[int]:
    """Count, in every run, the tokens up to the last one that is wanted or that leads to a wanted one."""
    runs, order = tree.runs, [0]
    for run in order:  # grows as it is read
        order += runs[run].children.values()
    if not tree.count:
        return [0] * len(runs)
    last = np.maximum.accumulate(np.where(wanted, np.arange(1, tree.count + 1), 0))  # one behind the last wanted one
    kept = [max(0, end - run.start) for run, end in zip(runs, last[[r.stop - 1 for r in runs]].tolist(), strict=True)]
    for index in reversed(order):
        if any(kept[child] for child in runs[index].children.values()):
            kept[index] = runs[index].stop - runs[index].start
    return kept


def prefix_tree(tree: RolloutTree, needed: Sequence[int]) -> tuple[PrefixTree, dict[int, np.ndarray]]:
    """The prefix tree of ``needed`` nodes, ascending with all ancestors, and the numbers of each one's tokens."""
    result = PrefixTree(sum(len(tree.nodes[i].token_ids) for i in needed))
    places: dict[int, np.ndarray] = {}
    for index in needed:
        node = tree.nodes[index]
        after = int(places[node.parent][-1]) if node.parent >= 0 else -1
        places[index] = result.add(after, node.token_ids)
    return result, places
