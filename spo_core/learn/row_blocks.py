"""Divides a packed tree into calls of SDPA, for devices without a kernel for trees.

A *row* is a range of the packed tokens: they are the queries, and the keys are the path before the range and the range
itself, which hold all that any of them sees. Longer ranges copy fewer paths and need fewer rows, shorter ones compute
fewer scores that are masked. Rows of similar shape are padded to a *block*, one call of SDPA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spo_core.learn.prefix_tree import Stretch

# what one row, one copied key and value, and one call cost, as the number of attention scores that cost the same,
# forward and backward; measured on two cores of an AMD EPYC with 3 heads of 32 numbers
ROW, KEY, CALL = 2_500, 14, 30_000


@dataclass(frozen=True, eq=False, slots=True)
class RowBlock:
    """Rows of one shape, as packed indices: ``queries`` (rows, width), padded with the row's first; ``keys`` and
    ``valid`` (rows, length), False where a key is padding; None where none is."""

    queries: Tensor
    keys: Tensor
    valid: Tensor | None


@dataclass(frozen=True, eq=False, slots=True)
class _Row:
    start: int
    stop: int
    path: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return self.stop - self.start, len(self.path) + self.stop - self.start


def row_blocks(trees: Sequence[Sequence[Stretch]], device: torch.device | str) -> tuple[tuple[RowBlock, ...], Tensor]:
    """The blocks of packed trees, given as depth-first stretches; and of each packed token its index among the queries
    of all blocks, int64 [tokens]."""
    rows: list[_Row] = []
    start = 0
    for tree in trees:
        rows += _rows(tree, start)
        start += sum(len(stretch.tokens) for stretch in tree)
    blocks = []
    slots = np.zeros(start, np.int64)
    filled = 0
    for group in _grouped(rows):
        width, length = (max(sizes) for sizes in zip(*(row.shape for row in group), strict=True))
        queries, keys = np.zeros((len(group), width), np.int64), np.zeros((len(group), length), np.int64)
        valid = np.zeros((len(group), length), bool)
        for r, row in enumerate(group):
            own = np.arange(row.start, row.stop)
            queries[r] = row.start
            queries[r, : len(own)] = own
            keys[r, : row.shape[1]] = np.concatenate([row.path, own])
            valid[r, : row.shape[1]] = True
            slots[own] = filled + r * width + np.arange(len(own))
        filled += queries.size
        tensors = [torch.from_numpy(x).to(device) for x in (queries, keys, valid)]
        blocks.append(RowBlock(tensors[0], tensors[1], None if valid.all() else tensors[2]))
    return tuple(blocks), torch.from_numpy(slots).to(device)


def _cost(width: int, length: int) -> int:
    """The cost of a row, in attention scores."""
    return width * length + ROW + KEY * length


def _rows(tree: Sequence[Stretch], start: int) -> list[_Row]:
    """Rows of one tree, whose tokens begin at ``start``: neighbours are joined where that is cheaper than apart."""
    sizes = [len(stretch.tokens) for stretch in tree]
    starts = start + np.cumsum([0, *sizes])
    ranges: list[tuple[int, int]] = []  # of stretches
    joined = 0
    for number, (stretch, size) in enumerate(zip(tree, sizes, strict=True)):
        alone = _cost(size, stretch.before + size)
        if ranges:
            first = ranges[-1][0]
            width = int(starts[number + 1] - starts[first])
            together = _cost(width, tree[first].before + width)
            if together <= joined + alone:
                ranges[-1], joined = (first, number + 1), together
                continue
        ranges.append((number, number + 1))
        joined = alone
    return [_Row(int(starts[a]), int(starts[b]), _path(tree, starts, a)) for a, b in ranges]


def _path(tree: Sequence[Stretch], starts: np.ndarray, number: int) -> np.ndarray:
    """Packed indices of the tokens before a stretch."""
    parts = [np.zeros(0, np.int64)]
    while (number := tree[number].parent) >= 0:
        parts.append(np.arange(starts[number], starts[number + 1]))
    return np.concatenate(parts[::-1])


def _grouped(rows: list[_Row]) -> list[list[_Row]]:
    """Rows of similar shape together, as long as padding costs less than another call."""
    groups: list[list[_Row]] = []
    width = length = cost = 0
    for row in sorted(rows, key=lambda row: _cost(*row.shape)):
        wider, longer = max(width, row.shape[0]), max(length, row.shape[1])
        padded = (len(groups[-1]) + 1) * _cost(wider, longer) if groups else 0
        if groups and padded <= cost + _cost(*row.shape) + CALL:
            groups[-1].append(row)
            width, length, cost = wider, longer, padded
        else:
            groups.append([row])
            (width, length), cost = row.shape, _cost(*row.shape)
    return groups
