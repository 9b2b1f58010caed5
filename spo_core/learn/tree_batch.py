"""Trees laid out as one packed row of tokens, depth-first, in which every distinct prefix stands once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding

from spo_core.learn.prefix_tree import Stretch, prefix_tree, stretches
from spo_core.learn.row_blocks import RowBlock, row_blocks
from spo_core.tree import RolloutTree


def taken(values: Tensor, at: Tensor) -> Tensor:
    """The rows of ``values`` (rows, size) at indices that may repeat. The gradient of a row is the sum in their order;
    plain indexing adds in the order in which a CPU's threads come to them, so that last bits would differ by run."""
    return embedding(at, values)


@dataclass(frozen=True, eq=False, slots=True)
class TrainedSegments:
    """A tree and, per node, a bool mask [tokens] of the tokens whose log-prob is wanted."""

    tree: RolloutTree
    masks: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Measured:
    """Sampled tokens that are forwarded and not trained, and whose log-prob is wanted all the same, without gradient.

    ``sources``/``targets`` [measured tokens] as in TreeBatch. ``places``: (item, node, int64 [n] which of the node's
    tokens), in the order in which the tokens stand in them.
    """

    sources: Tensor
    targets: Tensor
    places: tuple[tuple[int, int, np.ndarray], ...]


@dataclass(frozen=True, eq=False, slots=True)
class TreeBatch:
    """One packed row of trees, and which of its tokens are trained.

    ``sources``/``targets`` [trained tokens]: packed index of the token before each trained token, and its own id;
    ``order`` has the (item, node) pairs in the order in which their trained tokens stand there. ``first``/``last``
    [tokens]: depth-first number of the token's stretch and of the last stretch below it, so that token k is before
    token q on its path where first[k] <= first[q] <= last[k] and k <= q. ``blocks`` are the SDPA calls of attention
    ``rows``, ``slots`` [tokens] each token's index among the queries of all blocks. ``trees`` are the items' own.
    """

    input_ids: Tensor  # (tokens,)
    position_ids: Tensor  # (tokens,)
    first: Tensor  # (tokens,)
    last: Tensor  # (tokens,)
    blocks: tuple[RowBlock, ...]
    slots: Tensor
    sources: Tensor
    targets: Tensor
    order: tuple[tuple[int, int], ...]
    measured: Measured | None = None
    trees: tuple[RolloutTree, ...] = ()

    @property
    def forwarded_tokens(self) -> int:
        return len(self.input_ids)


def needed_nodes(tree: RolloutTree, masks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Two bool [nodes]: nodes that are trained or have a trained node below them, and those that have one below."""
    needed = np.array([bool(mask.any()) for mask in masks])
    below = np.zeros(len(needed), bool)
    for index in range(len(needed) - 1, 0, -1):
        if needed[index]:
            below[tree.nodes[index].parent] = True
            needed[tree.nodes[index].parent] = True
    return needed, below


@dataclass(frozen=True, eq=False, slots=True)
class _Item:
    """A tree with equal prefixes merged: ``ids`` of its distinct tokens, and the stretches to forward.

    ``before``, for trained nodes and their ancestors but the prompt: int64 [tokens of the node], the number of the
    distinct token before each token.
    """

    ids: np.ndarray
    stretches: list[Stretch]
    before: dict[int, np.ndarray]


def layout(items: Sequence[TrainedSegments], device: torch.device | str = "cpu", *, measure: bool = False) -> TreeBatch:
    """Pack the tokens that predict trained ones, and all before them on their paths, each distinct prefix once.

    ``measure``: list the other sampled tokens of these paths in ``measured``; the rest of the batch stays the same.
    """
    merged = [_merged(item) for item in items]
    trees = [own.stretches for own in merged]
    found = [stretch for own in trees for stretch in own]
    lengths = np.array([len(stretch.tokens) for stretch in found], np.int64)
    starts = np.cumsum(lengths) - lengths
    offsets = np.cumsum([0, *map(len, trees)])  # depth-first number of each tree's first stretch
    offset = np.repeat(offsets[:-1], [len(own) for own in trees])
    packed = [_packed(own, starts[begin:]) for own, begin in zip(merged, offsets.tolist(), strict=False)]

    def per_token(values: Sequence[int] | np.ndarray) -> np.ndarray:
        return np.repeat(np.asarray(values, np.int64), lengths)

    def tensor(parts: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)).to(device)

    def pairs(places: Sequence[tuple[int, int, np.ndarray]]) -> tuple[Tensor, Tensor]:
        sources = [packed[i][merged[i].before[node][at]] for i, node, at in places]
        return tensor(sources), tensor([items[i].tree.nodes[node].token_ids[at] for i, node, at in places])

    keys = [(items[i].tree.depths[node], i, node) for i, own in enumerate(merged) for node in own.before]
    in_order = [(i, node) for _, i, node in sorted(keys)]
    trained = [(i, node, at) for i, node in in_order if len(at := np.flatnonzero(items[i].masks[node]))]
    measured = None
    if measure:
        others = [(i, node, np.flatnonzero(~items[i].masks[node])) for i, node in in_order]
        places = tuple(place for place in others if len(place[2]))
        measured = Measured(*pairs(places), places)
    blocks, slots = row_blocks(trees, device)
    return TreeBatch(
        tensor([own.ids[stretch.tokens] for own in merged for stretch in own.stretches]),
        tensor([np.arange(lengths.sum()) + per_token([stretch.before for stretch in found]) - per_token(starts)]),
        tensor([per_token(offset + [stretch.first for stretch in found])]),
        tensor([per_token(offset + [stretch.last for stretch in found])]),
        blocks,
        slots,
        *pairs(trained),
        tuple((i, node) for i, node, _ in trained),
        measured,
        tuple(item.tree for item in items),
    )


def _merged(item: TrainedSegments) -> _Item:
    needed = np.flatnonzero(needed_nodes(item.tree, item.masks)[0]).tolist()
    tree, numbers = prefix_tree(item.tree, needed)
    before: dict[int, np.ndarray] = {}
    wanted = np.zeros(tree.count, bool)
    for node in needed[1:]:
        before[node] = np.append(numbers[item.tree.nodes[node].parent][-1], numbers[node][:-1])
        if item.masks[node].any():
            wanted[before[node]] = True
    return _Item(tree.ids, stretches(tree, wanted), before)


def _packed(item: _Item, starts: np.ndarray) -> np.ndarray:
    """Packed index of every distinct token that is forwarded, int64 [count]."""
    places = np.zeros(len(item.ids), np.int64)
    for stretch, start in zip(item.stretches, starts.tolist(), strict=False):
        places[stretch.tokens] = start + np.arange(len(stretch.tokens))
    return places
