"""Trees laid out as one packed row of tokens, in which every shared prefix stands once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from spo_core.tree import RolloutTree


@dataclass(frozen=True, eq=False, slots=True)
class TrainedSegments:
    """A tree and, per node, a bool mask [tokens] of the tokens whose log-prob is wanted."""

    tree: RolloutTree
    masks: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Level:
    """All forwarded segments of one depth, a contiguous range of the packed row, with siblings side by side.

    An unbranched run of segments is as one here. They attend as a grid of parents x children x width: ``slots``
    (parents, children, width) indexes the level's tokens, ``taken`` [tokens] is each token's place in the flattened
    grid; both None where every slot is a token, in order. ``path`` (parents, length) indexes the packed row: the tokens
    before the segments; ``path_valid`` None where it is unpadded.
    """

    start: int
    stop: int
    grid: tuple[int, int, int]
    slots: Tensor | None
    taken: Tensor | None
    path: Tensor
    path_valid: Tensor | None


@dataclass(frozen=True, eq=False, slots=True)
class Measured:
    """Sampled tokens that are forwarded and not trained, and whose log-prob is wanted all the same, without gradient.

    ``sources``/``targets`` [measured tokens] as of a TreeBatch; ``places``: (item, node, int64 [n] tokens of the node),
    whose tokens follow one another in them.
    """

    sources: Tensor
    targets: Tensor
    places: tuple[tuple[int, int, np.ndarray], ...]


@dataclass(frozen=True, eq=False, slots=True)
class TreeBatch:
    """One packed row, level after level. ``sources``/``targets`` [trained tokens]: packed index and token id.

    ``order`` names the (item, node) pairs whose trained tokens follow one another in them, by depth, item, node.
    ``first``/``last`` [tokens] number the nodes depth-first over all trees: token k is before token q on its path where
    first[k] <= first[q] <= last[k] and k <= q.
    """

    input_ids: Tensor  # (tokens,)
    position_ids: Tensor  # (tokens,)
    first: Tensor  # (tokens,)
    last: Tensor  # (tokens,)
    levels: tuple[Level, ...]
    sources: Tensor
    targets: Tensor
    order: tuple[tuple[int, int], ...]
    measured: Measured | None = None

    @property
    def forwarded_tokens(self) -> int:
        return len(self.input_ids)


def needed_nodes(tree: RolloutTree, masks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Bool [nodes] twice: trained or an ancestor of one that is; and whether a child is needed."""
    needed = np.array([bool(mask.any()) for mask in masks])
    below = np.zeros(len(needed), bool)
    for index in range(len(needed) - 1, 0, -1):
        if needed[index]:
            below[tree.nodes[index].parent] = True
            needed[tree.nodes[index].parent] = True
    return needed, below


@dataclass(frozen=True, eq=False, slots=True)
class _Placed:
    """A forwarded node: its tokens stand at start, start + 1, ... of the packed row, ``before`` tokens after its root.

    The last token of a segment without forwarded children predicts nothing and is left out.
    """

    key: tuple[int, int]
    ids: np.ndarray
    before: int
    start: int


def layout(items: Sequence[TrainedSegments], device: torch.device | str = "cpu", *, measure: bool = False) -> TreeBatch:
    """Lay out the nodes that are trained, and their ancestors; nothing else is forwarded.

    ``measure``: their other sampled tokens are to be measured, see Measured; it changes nothing else.
    """
    placed: list[_Placed] = []
    paths: dict[tuple[int, int], np.ndarray] = {}  # packed indices from the root to the last token of a run
    levels: list[Level] = []
    trained: list[tuple[tuple[int, int], np.ndarray, np.ndarray]] = []  # key, sources, targets
    measured: list[tuple[np.ndarray, np.ndarray, tuple[int, int, np.ndarray]]] = []
    start = 0
    for groups in _needed_by_depth(items):
        rows: list[tuple[np.ndarray, list[int]]] = []  # path of the parent, lengths of its children
        level_start = start
        for parent, runs in groups:
            path = _NOTHING if parent is None else paths[parent]
            lengths = []
            for item, run, whole in runs:
                tree, masks = items[item].tree, items[item].masks
                begin, last = start, path[-1:]  # the packed index of the token before
                for index in run:
                    node, mask = tree.nodes[index], masks[index]
                    ids = node.token_ids if whole or index != run[-1] else node.token_ids[:-1]
                    placed.append(_Placed((item, index), ids, len(path) + start - begin, start))
                    if parent is not None:
                        before = np.arange(start - 1, start + len(mask) - 1)  # each token's predecessor
                        before[0] = last[0]
                        if mask.any():
                            trained.append(((item, index), before[mask], node.token_ids[mask]))
                        if measure and not mask.all():
                            places = (item, index, np.flatnonzero(~mask))
                            measured.append((before[~mask], node.token_ids[~mask], places))
                    start += len(ids)
                    last = np.array([start - 1])
                if whole:
                    paths[item, run[-1]] = np.concatenate([path, np.arange(begin, start)])
                if start > begin:
                    lengths.append(start - begin)
            if lengths:
                rows.append((path, lengths))
        if rows:
            levels.append(_level(level_start, start, rows, device))
    trained.sort(key=lambda of: (items[of[0][0]].tree.depths[of[0][1]], of[0]))
    batch = _packed(placed, _depth_first(items), levels, trained, device)
    if not measure:
        return batch
    before_each, followers = _tensor([m for m, _, _ in measured], device), _tensor([m for _, m, _ in measured], device)
    return replace(batch, measured=Measured(before_each, followers, tuple(place for _, _, place in measured)))


_NOTHING = np.zeros(0, np.int64)


def _packed(
    nodes: list[_Placed],
    spans: dict[tuple[int, int], tuple[int, int]],
    levels: list[Level],
    trained: list[tuple[tuple[int, int], np.ndarray, np.ndarray]],
    device: torch.device | str,
) -> TreeBatch:
    lengths = np.array([len(node.ids) for node in nodes], np.int64)

    def per_token(values: list[int]) -> np.ndarray:
        return np.repeat(np.array(values, np.int64), lengths)

    def tensor(parts: Sequence[np.ndarray]) -> Tensor:
        return _tensor(parts, device)

    behind_start = np.arange(int(lengths.sum())) - per_token([node.start for node in nodes])
    return TreeBatch(
        tensor([node.ids for node in nodes]),
        tensor([per_token([node.before for node in nodes]) + behind_start]),
        tensor([per_token([spans[node.key][0] for node in nodes])]),
        tensor([per_token([spans[node.key][1] for node in nodes])]),
        tuple(levels),
        tensor([sources for _, sources, _ in trained]),
        tensor([targets for _, _, targets in trained]),
        tuple(key for key, _, _ in trained),
    )


def _tensor(parts: Sequence[np.ndarray], device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.concatenate([_NOTHING, *parts]).astype(np.int64)).to(device)


Run = tuple[int, list[int], bool]  # item, nodes that follow one another, whether the last has forwarded children
Group = tuple[tuple[int, int] | None, list[Run]]


def _needed_by_depth(items: Sequence[TrainedSegments]) -> list[list[Group]]:
    """Per level: (parent as (item, node), what follows it). Segments of one response that was cut, each the only one
    to continue its parent, are one run: a level has as many steps as a path has branchings, not segments."""
    by_depth: list[list[Group]] = []
    for t, item in enumerate(items):
        needed, below = needed_nodes(item.tree, item.masks)
        if not needed[0]:
            continue
        children, nodes = item.tree.children, item.tree.nodes

        own = [[c for c in below_it if nodes[c].trainable] for below_it in children]
        only = [of[0] if len(of) == 1 else -1 for of in own]
        level: list[Group] = [(None, [(t, [0], True)])]
        depth = 0
        while level:
            while len(by_depth) <= depth:
                by_depth.append([])
            by_depth[depth] += level
            ends = [indices[-1] for _, runs in level for _, indices, inner in runs if inner]
            level = [((t, end), [_run(t, c, only, below) for c in children[end] if needed[c]]) for end in ends]
            depth += 1
    return by_depth


def _run(item: int, index: int, only: Sequence[int], below: np.ndarray) -> Run:
    """From a node on, while ``only`` one trainable node continues it; -1 where none or several do."""
    indices = [index]
    while below[indices[-1]] and only[indices[-1]] >= 0:
        indices.append(only[indices[-1]])
    return item, indices, bool(below[indices[-1]])


def _depth_first(items: Sequence[TrainedSegments]) -> dict[tuple[int, int], tuple[int, int]]:
    """First and last number of every node's subtree, counted depth-first over all trees."""
    spans: dict[tuple[int, int], tuple[int, int]] = {}
    offset = 0
    for t, item in enumerate(items):
        nodes = item.tree.nodes
        sizes = np.ones(len(nodes), np.int64)
        for index in range(len(nodes) - 1, 0, -1):
            sizes[nodes[index].parent] += sizes[index]
        number = np.zeros(len(nodes), np.int64)
        for index, children in enumerate(item.tree.children):  # parents stand before their children
            free = number[index] + 1
            for child in children:
                number[child] = free
                free += sizes[child]
        for index in range(len(nodes)):
            spans[t, index] = (offset + int(number[index]), offset + int(number[index] + sizes[index]) - 1)
        offset += len(nodes)
    return spans


def _level(start: int, stop: int, rows: list[tuple[np.ndarray, list[int]]], device: torch.device | str) -> Level:
    parents, children = len(rows), max(len(lengths) for _, lengths in rows)
    width = max(max(lengths) for _, lengths in rows)
    longest = max(len(path) for path, _ in rows)
    path = np.zeros((parents, longest), np.int64)
    valid = np.zeros((parents, longest), bool)
    slots = np.zeros((parents, children, width), np.int64)
    taken = []
    at = 0
    for p, (before, lengths) in enumerate(rows):
        path[p, : len(before)] = before
        valid[p, : len(before)] = True
        for c, length in enumerate(lengths):
            slots[p, c, :length] = at + np.arange(length)
            taken.append((p * children + c) * width + np.arange(length))
            at += length
    full = at == slots.size
    return Level(
        start,
        stop,
        (parents, children, width),
        None if full else torch.from_numpy(slots).to(device),
        None if full else torch.from_numpy(np.concatenate(taken)).to(device),
        torch.from_numpy(path).to(device),
        None if valid.all() else torch.from_numpy(valid).to(device),
    )
