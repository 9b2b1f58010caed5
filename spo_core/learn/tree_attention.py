"""Attention inside packed trees: every token sees its ancestors' tokens and those before it in its own segment.

Where a layer has a window, a token sees of its path what it would in a plain forward pass: windows count positions, not
places in the packed row.

* rows: ranges of the packed row with the path before them, in SDPA (see row_blocks); works on every device.
* flex: FlexAttention over the packed row with the ancestor mask. Has no backward pass on CPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from spo_core.learn.block_mask import Spans, ancestor_mask, block_mask
from spo_core.learn.row_blocks import RowBlock
from spo_core.learn.tree_batch import TreeBatch
from spo_core.policy.attention import Attending, Sees, capped, first_seen, products


class TreeLayout:
    """The Layout of a packed tree, for attention of one ``kind``: rows or flex."""

    packed = True

    def __init__(self, batch: TreeBatch, kind: str) -> None:
        self.batch, self.kind = batch, kind

    def mask(self, sees: Sees) -> Attending:
        batch, reach = self.batch, first_seen(sees, self.batch.position_ids)
        if reach is None:  # as zeros, so that FlexAttention is compiled once for all layers
            reach = torch.zeros_like(batch.first)
        spans = Spans(batch.first, batch.last, batch.position_ids, reach)
        if self.kind == "flex":
            return Flex(block_mask(spans))
        return Rows(batch, tuple(_added(block, ancestor_mask(spans)) for block in batch.blocks))


@dataclass(frozen=True, eq=False, slots=True)
class Flex(Attending):
    """FlexAttention over the packed row."""

    blocks: BlockMask

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, softcap: float | None, sinks: Tensor | None
    ) -> Tensor:
        def score_mod(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return capped(score, softcap)

        options: dict[str, Any] = {"block_mask": self.blocks, "scale": scale, "enable_gqa": True}
        if softcap is not None:
            options["score_mod"] = score_mod
        if query.is_cuda:  # with few queries it would choose a kernel that wants keys shared by a power of two of heads
            options["kernel_options"] = {"FORCE_USE_FLEX_ATTENTION": True}
        if sinks is None:
            return _flex()(query, key, value, **options).transpose(1, 2)
        out, aux = _flex()(query, key, value, return_aux=AuxRequest(lse=True), **options)
        # a sink is one more key with this score and value 0, which leaves exp(lse) / (exp(lse) + exp(sink)) of the rest
        share = torch.sigmoid(aux.lse - sinks.float().view(1, -1, 1))
        return (out * share[..., None].to(out.dtype)).transpose(1, 2)


@cache
def _flex() -> Callable[..., Any]:
    compiled: Any = torch.compile(flex_attention, dynamic=True)
    return compiled if torch.cuda.is_available() else flex_attention


@dataclass(frozen=True, eq=False, slots=True)
class Rows(Attending):
    """SDPA block by block; ``masks`` has what each block adds to its scores, float32 (rows, 1, width, length)."""

    batch: TreeBatch
    masks: tuple[Tensor, ...]

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, softcap: float | None, sinks: Tensor | None
    ) -> Tensor:
        blocks, slots = self.batch.blocks, self.batch.slots
        queries, keys, values = (x[0].transpose(0, 1) for x in (query, key, value))  # (tokens, heads, head dim)
        places = torch.cat([block.queries.flatten() for block in blocks])
        parts = _Spread.apply(queries, places, slots).split([block.queries.numel() for block in blocks])
        flat_keys, flat_values = keys.flatten(1), values.flatten(1)
        out = []
        for block, mask, part in zip(blocks, self.masks, parts, strict=True):
            q = part.view(*block.queries.shape, *queries.shape[1:]).transpose(1, 2)
            k = F.embedding(block.keys, flat_keys).view(*block.keys.shape, *keys.shape[1:]).transpose(1, 2)
            v = F.embedding(block.keys, flat_values).view(*block.keys.shape, *values.shape[1:]).transpose(1, 2)
            mask = mask.to(query.dtype)
            if softcap is not None or sinks is not None:
                found = products(q, k, v, mask, scale, softcap, sinks)
            else:
                found = F.scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
                ).transpose(1, 2)
            out.append(found.flatten(0, 1))  # (queries, heads, value dim)
        return _Collect.apply(torch.cat(out), slots)[None]


def _added(block: RowBlock, sees: Callable[..., Tensor]) -> Tensor:
    """The additive mask of a block, float32 (rows, 1, width, length): 0 where a query sees a key, else -inf."""
    zero = torch.zeros((), dtype=torch.long, device=block.keys.device)
    visible = sees(zero, zero, block.queries[:, :, None], block.keys[:, None])
    if block.valid is not None:
        visible = visible & block.valid[:, None]
    return torch.zeros(visible.shape, device=visible.device).masked_fill_(~visible, float("-inf"))[:, None]


class _Spread(torch.autograd.Function):
    """Gathers tokens as the queries of rows. The gradient of padding is dropped: it is 0, as ``_Collect`` takes nothing
    from padded slots. The backward pass of plain indexing would add gradients one by one."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, slots: Tensor, taken: Tensor) -> Tensor:
        ctx.save_for_backward(taken)
        return tokens[slots]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (taken,) = ctx.saved_tensors
        return gradients[0][taken], None, None


class _Collect(torch.autograd.Function):
    """Gathers the tokens' outputs from their slots."""

    @staticmethod
    def forward(ctx: Any, slots: Tensor, taken: Tensor) -> Tensor:
        ctx.save_for_backward(taken)
        ctx.slots = slots.shape[0]
        return slots[taken]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (taken,) = ctx.saved_tensors
        (gradient,) = gradients
        result = gradient.new_zeros(ctx.slots, *gradient.shape[1:])
        result[taken] = gradient
        return result, None
