"""FlexAttention's mask of a packed tree, made from its intervals; the tokens x tokens mask is never written.

A block of 128 x 128 is *full* where every query sees every key, which four comparisons of extreme values say exactly;
it is left out where the extreme values exclude that any does; else FlexAttention asks ``ancestor_mask`` of each pair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128  # tokens; FlexAttention's own


@dataclass(frozen=True, eq=False, slots=True)
class Spans:
    """Per token of a packed row, int64 [tokens] each: TreeBatch's ``first``, ``last`` and position, and ``reach``, the
    first position that it sees on its path (0 without a window). ``levels``: where they start."""

    first: Tensor
    last: Tensor
    position: Tensor
    reach: Tensor
    levels: tuple[int, ...]


def ancestor_mask(spans: Spans) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """FlexAttention's mask_mod: whether packed token ``q`` sees packed token ``k``."""
    first, last, position, reach = spans.first, spans.last, spans.position, spans.reach

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (first[k] <= first[q]) & (first[q] <= last[k]) & (reach[q] <= position[k])

    return sees


def block_mask(spans: Spans) -> BlockMask:
    """The ancestor mask by blocks, in (tokens / 128 + levels)^2 memory."""
    tokens = len(spans.first)
    count = -(-tokens // BLOCK)
    # nodes of one level are numbered in order: extreme values say most of pieces that lie in one block and one level
    starts = torch.tensor(sorted({*range(0, tokens, BLOCK), *spans.levels}), device=spans.first.device)
    piece = torch.bucketize(torch.arange(tokens, device=starts.device), starts, right=True) - 1
    (low_first, high_first), (low_last, high_last), (low_position, high_position), (low_reach, high_reach) = (
        _extremes(x, piece, len(starts)) for x in (spans.first, spans.last, spans.position, spans.reach)
    )
    # queries are rows, keys are columns
    some = (low_first <= high_first[:, None]) & (low_first[:, None] <= high_last)
    some &= (starts <= starts[:, None]) & (low_reach[:, None] <= high_position)
    every = (high_first <= low_first[:, None]) & (high_first[:, None] <= low_last)
    every &= (starts < starts[:, None]) & (high_reach[:, None] <= low_position)
    some, hollow = (_by_blocks(x, starts // BLOCK, count) for x in (some, ~every))
    whole = torch.arange(1, count + 1, device=starts.device) * BLOCK <= tokens  # the rest is masked in partial blocks
    full = ~hollow & whole[:, None]
    counts, indices = _listed(some & ~full)
    full_counts, full_indices = _listed(full)
    return BlockMask.from_kv_blocks(
        counts,
        indices,
        full_counts,
        full_indices,
        BLOCK_SIZE=BLOCK,
        mask_mod=ancestor_mask(spans),
        seq_lengths=(tokens, tokens),
    )


def _extremes(values: Tensor, piece: Tensor, pieces: int) -> tuple[Tensor, Tensor]:
    """Least and greatest value of each piece; [pieces]."""
    empty = values.new_zeros(pieces)
    low, high = (empty.scatter_reduce(0, piece, values, how, include_self=False) for how in ("amin", "amax"))
    return low, high


def _by_blocks(pieces: Tensor, block: Tensor, count: int) -> Tensor:
    """Bool (blocks, blocks): whether any pair of their pieces is set."""
    rows = torch.zeros(count, len(block), dtype=torch.int32, device=block.device).index_add_(0, block, pieces.int())
    return rows.new_zeros(count, count).index_add_(1, block, rows).bool()


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Per query block the number of key blocks, and their indices in front; int32 (1, 1, blocks) and (..., blocks)."""
    indices = torch.argsort(blocks.int(), dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[None, None], indices.int()[None, None]
