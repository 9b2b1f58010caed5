"""FlexAttention's mask of a packed tree, block by block; no tokens x tokens mask is ever made.

Blocks of 128 x 128 pairs are told apart by the least and greatest values of their spans: in a *full* block every query
sees every key, and a block where none can see any is left out. In the others FlexAttention asks ``ancestor_mask``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128  # tokens; FlexAttention's own


@dataclass(frozen=True, eq=False, slots=True)
class Spans:
    """What each token of a packed row sees, int64 [tokens] each: TreeBatch's ``first``, ``last`` and position, and
    ``reach``, the first position that it sees on its path (0 without a window)."""

    first: Tensor
    last: Tensor
    position: Tensor
    reach: Tensor


def ancestor_mask(spans: Spans) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """FlexAttention's mask_mod: whether packed token ``q`` sees packed token ``k``."""
    first, last, position, reach = spans.first, spans.last, spans.position, spans.reach

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (first[k] <= first[q]) & (first[q] <= last[k]) & (reach[q] <= position[k])

    return sees


def block_mask(spans: Spans) -> BlockMask:
    """The ancestor mask by blocks, in (tokens / 128)^2 memory."""
    tokens = len(spans.first)
    (low_first, high_first), (low_last, high_last), (low_position, high_position), (low_reach, high_reach) = (
        _extremes(x) for x in (spans.first, spans.last, spans.position, spans.reach)
    )
    at = torch.arange(len(low_first), device=spans.first.device)
    # queries are rows, keys are columns
    some = (low_first <= high_first[:, None]) & (low_first[:, None] <= high_last)
    some &= (at <= at[:, None]) & (low_reach[:, None] <= high_position)
    full = (high_first <= low_first[:, None]) & (high_first[:, None] <= low_last)
    full &= (at < at[:, None]) & (high_reach[:, None] <= low_position)
    full &= ((at + 1) * BLOCK <= tokens)[:, None]  # what lies beyond the end is masked in partial blocks
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


def _extremes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest of each block of 128 values; [blocks]."""
    blocks = F.pad(values[None], (0, -len(values) % BLOCK), mode="replicate").view(-1, BLOCK)
    return blocks.amin(1), blocks.amax(1)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Key blocks of each query block: their number, int32 (1, 1, blocks), and indices first, (1, 1, blocks, blocks)."""
    indices = torch.argsort(blocks.int(), dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[None, None], indices.int()[None, None]
