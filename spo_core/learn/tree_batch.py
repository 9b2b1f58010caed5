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

    They attend as a grid of parents x children x width: ``slots`` (parents, children, width) indexes the level's
    tokens, ``taken`` [tokens] is each token's place in the flattened grid; both None where every slot is a token, in
    order. ``path`` (parents, length) indexes the packed row: the tokens before the segments; ``path_valid`` None where
    it is unpadded.
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

    ``order`` names the (item, node) pairs whose trained tokens follow one another in them. ``first``/``last`` [tokens]
    number the nodes depth-first over all trees: token k is before token q on its path where
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

    The last token of a segment without forwarded children predicts nothing and is left out; its path is not needed.
    """

    key: tuple[int, int]
    ids: np.ndarray
    before: int
    start: int
    path: np.ndarray  # packed indices from the root to its last token


def layout(items: Sequence[TrainedSegments], device: torch.device | str = "cpu", *, measure: bool = False) -> TreeBatch:
    """Lay out the nodes that are trained, and their ancestors; nothing else is forwarded.

    ``measure``: their other sampled tokens are to be measured, see Measured; it changes nothing else.
    """
    placed: dict[tuple[int, int], _Placed] = {}
    levels: list[Level] = []
    sources: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    order: list[tuple[int, int]] = []
    measured: list[tuple[np.ndarray, np.ndarray, tuple[int, int, np.ndarray]]] = []
    start = 0
    for groups in _needed_by_depth(items):
        rows: list[tuple[np.ndarray, list[int]]] = []  # path of the parent, lengths of its children
        level_start = start
        for parent, children in groups:
            path = _NOTHING if parent is None else placed[parent].path
            lengths = []
            for key, whole in children:
                node = items[key[0]].tree.nodes[key[1]]
                ids = node.token_ids if whole else node.token_ids[:-1]
                own_path = np.concatenate([path, np.arange(start, start + len(ids))]) if whole else _NOTHING
                placed[key] = _Placed(key, ids, len(path), start, own_path)
                if parent is not None:
                    mask = items[key[0]].masks[key[1]]
                    before = np.arange(start - 1, start + len(mask) - 1)  # each token's predecessor
                    before[0] = path[-1]
                    if mask.any():
                        sources.append(before[mask])
                        targets.append(node.token_ids[mask])
                        order.append(key)
                    if measure and not mask.all():
                        measured.append((before[~mask], node.token_ids[~mask], (*key, np.flatnonzero(~mask))))
                start += len(ids)
                if len(ids):
                    lengths.append(len(ids))
            if lengths:
                rows.append((path, lengths))
        if rows:
            levels.append(_level(level_start, start, rows, device))
    batch = _packed(list(placed.values()), _depth_first(items), levels, sources, targets, order, device)
    if not measure:
        return batch
    before_each, followers = _tensor([m for m, _, _ in measured], device), _tensor([m for _, m, _ in measured], device)
    return replace(batch, measured=Measured(before_each, followers, tuple(place for _, _, place in measured)))


_NOTHING = np.zeros(0, np.int64)


def _packed(
    nodes: list[_Placed],
    spans: dict[tuple[int, int], tuple[int, int]],
    levels: list[Level],
    sources: list[np.ndarray],
    targets: list[np.ndarray],
    order: list[tuple[int, int]],
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
        tensor(sources),
        tensor(targets),
        tuple(order),
    )


def _tensor(parts: Sequence[np.ndarray], device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.concatenate([_NOTHING, *parts]).astype(np.int64)).to(device)


Group = tuple[tuple[int, int] | None, list[tuple[tuple[int, int], bool]]]


def _needed_by_depth(items: Sequence[TrainedSegments]) -> list[list[Group]]:
    """Per depth: (parent, [(child, whether it has forwarded children)]), the parent as (item, node)."""
    by_depth: list[list[Group]] = []
    for t, item in enumerate(items):
        needed, below = needed_nodes(item.tree, item.masks)
        if not needed[0]:
            continue
        level: list[Group] = [(None, [((t, 0), True)])]
        depth = 0
        while level:
            while len(by_depth) <= depth:
                by_depth.append([])
            by_depth[depth] += level
            level = [
                (key, [((t, c), bool(below[c])) for c in item.tree.children[key[1]] if needed[c]])
                for _, children in level
                for key, inner in children
                if inner
            ]
            depth += 1
    return by_depth


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
