"""Attention inside packed trees: every token sees its ancestors' tokens and those before it in its own segment.

Where a layer has a window, a token sees of its path what it would in a plain forward pass: windows count positions, not
places in the packed row.

* levels: depth by depth, works on every device. Segments longer than their path in SDPA, each with a copy of the path;
  shorter ones, and scores with softcap or sinks, in matrix products of all children of a parent with the path, copied
  once, keeping attention weights.
* flex: FlexAttention over the packed row with the ancestor mask. Has no backward pass on CPUs.
* dense: the packed row with the same mask written out; what the tests compare flex with.
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

from spo_core.attention import Attending, Sees, capped, first_seen, products
from spo_core.learn.block_mask import Spans, ancestor_mask, block_mask
from spo_core.learn.tree_batch import Level, TreeBatch


class TreeLayout:
    """A packed tree; ``kind`` levels, flex or dense."""

    packed = True

    def __init__(self, batch: TreeBatch, kind: str) -> None:
        self.batch, self.kind = batch, kind

    def mask(self, sees: Sees) -> Attending:
        batch, reach = self.batch, first_seen(sees, self.batch.position_ids)
        if self.kind == "levels":
            return ByLevels(batch, tuple(_visible(level, batch, reach) for level in batch.levels))
        if reach is None:  # as zeros, so that FlexAttention is compiled once for all layers
            reach = torch.zeros_like(batch.first)
        levels = tuple(level.start for level in batch.levels)
        spans = Spans(batch.first, batch.last, batch.position_ids, reach, levels)
        if self.kind == "flex":
            return Flex(block_mask(spans))
        at = torch.arange(batch.forwarded_tokens, device=batch.first.device)
        return Dense(ancestor_mask(spans)(at, at, at[:, None], at[None])[None, None])


@dataclass(frozen=True, eq=False, slots=True)
class Dense(Attending):
    """``visible`` bool (1, 1, tokens, tokens)."""

    visible: Tensor

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, softcap: float | None, sinks: Tensor | None
    ) -> Tensor:
        if softcap is not None or sinks is not None:
            return products(query, key, value, self.visible, scale, softcap, sinks)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=self.visible, scale=scale, enable_gqa=True)
        return out.transpose(1, 2)


@dataclass(frozen=True, eq=False, slots=True)
class Flex(Attending):
    blocks: BlockMask

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, softcap: float | None, sinks: Tensor | None
    ) -> Tensor:
        def score_mod(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return capped(score, softcap)

        options: dict[str, Any] = {"block_mask": self.blocks, "scale": scale, "enable_gqa": True}
        if softcap is not None:
            options["score_mod"] = score_mod
        if query.is_cuda:  # the kernel for few queries is another one, and wants heads shared by a power of two
            options["kernel_options"] = {"FORCE_USE_FLEX_ATTENTION": True}
        if sinks is None:
            return _flex()(query, key, value, **options).transpose(1, 2)
        out, aux = _flex()(query, key, value, return_aux=AuxRequest(lse=True), **options)
        # one more key of this score and value 0: exp(lse) / (exp(lse) + exp(sink)) of the rest is left
        share = torch.sigmoid(aux.lse - sinks.float().view(1, -1, 1))
        return (out * share[..., None].to(out.dtype)).transpose(1, 2)


@cache
def _flex() -> Callable[..., Any]:
    compiled: Any = torch.compile(flex_attention, dynamic=True)
    return compiled if torch.cuda.is_available() else flex_attention


@dataclass(frozen=True, eq=False, slots=True)
class _Visible:
    """What tokens of a level see; None: all of the path, all of their own segment before them.

    ``path`` bool (parents, children or 1, width or 1, length), the first ``skip`` tokens of the paths being seen by
    none and left out; ``own`` bool (parents, children, width, width).
    """

    skip: int
    path: Tensor | None
    own: Tensor | None


def _visible(level: Level, batch: TreeBatch, reach: Tensor | None) -> _Visible:
    valid = None if level.path_valid is None else level.path_valid[:, None, None]
    if reach is None:
        return _Visible(0, valid, None)
    rows = (batch.position_ids[level.start : level.stop], reach[level.start : level.stop])
    if level.slots is None:
        at, first = (x.view(level.grid) for x in rows)
    else:
        at, first = (x[level.slots] for x in rows)
    length, width = level.path.shape[1], level.grid[2]
    skip = min(int(rows[1].min()), max(length - 1, 0))
    path = torch.arange(skip, length, device=first.device) >= first[..., None]  # a path's column is its position
    if valid is not None:
        path = path & valid[..., skip:]
    own = (at[:, :, None] >= first[..., None]) & torch.ones(width, width, dtype=torch.bool, device=at.device).tril()
    # padding sees itself, whatever token it repeats: softmax of nothing is not a number, in the backward pass too
    return _Visible(skip, path, own | torch.eye(width, dtype=torch.bool, device=at.device))


@dataclass(frozen=True, eq=False, slots=True)
class ByLevels(Attending):
    batch: TreeBatch
    visible: tuple[_Visible, ...]

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, softcap: float | None, sinks: Tensor | None
    ) -> Tensor:
        levels = self.batch.levels
        sizes = [level.stop - level.start for level in levels]
        rows = [x[0].transpose(0, 1) for x in (query * scale, key, value)]  # (tokens, heads, head dim)
        parts = zip(*(x.split(sizes) for x in rows), strict=True)
        flat_keys, flat_values = rows[1].flatten(1), rows[2].flatten(1)
        out = [
            _level(level, visible, q, k, v, flat_keys, flat_values, softcap, sinks)
            for level, visible, (q, k, v) in zip(levels, self.visible, parts, strict=True)
        ]
        return torch.cat(out)[None]


def _level(
    level: Level,
    visible: _Visible,
    q: Tensor,  # (tokens, heads, dim), as k and v of key/value heads
    k: Tensor,
    v: Tensor,
    all_keys: Tensor,  # (packed, key/value heads * dim)
    all_values: Tensor,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention of one level's tokens; (tokens, heads, dim of values)."""
    parents, _, width = level.grid
    path = level.path[:, visible.skip :]
    path_k, path_v = (
        F.embedding(path, x).view(parents, path.shape[1], *own.shape[1:]) for x, own in ((all_keys, k), (all_values, v))
    )
    if level.slots is not None and level.taken is not None:
        q, k, v = (_Spread.apply(x, level.slots.flatten(), level.taken) for x in (q, k, v))
    # a copy of the path for every child pays where it is short; sharing it keeps width x width weights of every child
    if width >= path.shape[1] and softcap is None and sinks is None:
        result = _alone(level.grid, visible, q, k, v, path_k, path_v)
    else:
        result = _together(level.grid, visible, q, k, v, path_k, path_v, softcap, sinks)
    if level.slots is None or level.taken is None:
        return result
    return _Collect.apply(result, level.taken)


def _alone(
    grid: tuple[int, int, int], visible: _Visible, q: Tensor, k: Tensor, v: Tensor, path_k: Tensor, path_v: Tensor
) -> Tensor:
    """Each segment with its own copy of its parent's path, in SDPA; (grid slots, heads, dim)."""
    parents, children, width = grid
    rows, length = parents * children, path_k.shape[1]

    def keys(path: Tensor, own: Tensor) -> Tensor:
        copies = path[:, None].expand(-1, children, -1, -1, -1).flatten(0, 1)
        return torch.cat([copies, own.view(rows, width, *own.shape[1:])], 1).transpose(1, 2)

    causal = torch.ones(width, width, dtype=torch.bool, device=q.device).tril()
    mask = torch.cat([causal.new_ones(width, length), causal], 1)
    if visible.path is not None:
        path = visible.path.expand(-1, children, width, -1).flatten(0, 1)
        own = causal.expand(rows, -1, -1) if visible.own is None else visible.own.flatten(0, 1)
        mask = torch.cat([path, own], -1)[:, None]
    queries = q.view(rows, width, *q.shape[1:]).transpose(1, 2)
    out = F.scaled_dot_product_attention(
        queries, keys(path_k, k), keys(path_v, v), attn_mask=mask, scale=1.0, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.transpose(1, 2).flatten(0, 1)


def _together(
    grid: tuple[int, int, int],
    visible: _Visible,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    path_k: Tensor,
    path_v: Tensor,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """All children of a parent in one product with its path; (grid slots, heads, dim)."""
    parents, children, width = grid
    heads, kv_heads, dim, length = q.shape[1], k.shape[1], q.shape[2], path_k.shape[1]
    shared, fan = heads // kv_heads, children * width
    # heads that share keys stand side by side as rows of one matrix product
    own_q = q.view(parents * children, width, kv_heads, shared, dim).permute(0, 2, 3, 1, 4).flatten(2, 3)
    own_k = k.view(parents * children, width, kv_heads, dim).permute(0, 2, 3, 1)
    own_v = v.view(parents * children, width, kv_heads, v.shape[2]).transpose(1, 2)
    if visible.own is None:
        later = torch.full((width, width), float("-inf"), dtype=q.dtype, device=q.device).triu(1).repeat(shared, 1)
    else:
        later = torch.zeros_like(visible.own, dtype=q.dtype).masked_fill(~visible.own, float("-inf"))
        later = (
            later.view(-1, 1, 1, width, width).expand(-1, kv_heads, shared, -1, -1).reshape(-1, shared * width, width)
        )
    own_q, own_k = own_q.flatten(0, 1), own_k.flatten(0, 1)
    own = torch.baddbmm(later, own_q, own_k) if softcap is None else capped(own_q @ own_k, softcap) + later
    own = own.view(parents, children, kv_heads, shared, width, width).permute(0, 2, 3, 1, 4, 5)
    path_q = q.view(parents, fan, kv_heads, shared, dim).permute(0, 2, 3, 1, 4).flatten(2, 3)
    scores = capped(path_q @ path_k.permute(0, 2, 3, 1), softcap)  # (parents, kv, shared * fan, length)
    scores = scores.view(parents, kv_heads, shared, children, width, length)
    if visible.path is not None:
        scores = scores.masked_fill(~visible.path[:, None, None], float("-inf"))
    parts = [scores, own]
    if sinks is not None:
        parts.append(sinks.to(own.dtype).view(1, kv_heads, shared, 1, 1, 1).expand_as(own[..., :1]))
    weights = torch.cat(parts, -1).float().softmax(-1).to(v.dtype)
    above, inside = weights.split([length, width] + [1] * (sinks is not None), -1)[:2]
    before = above.reshape(parents, kv_heads, shared * fan, length) @ path_v.transpose(1, 2)
    before = before.view(parents, kv_heads, shared, fan, -1).permute(0, 3, 1, 2, 4)
    return _own(inside, own_v) + before.reshape(parents * fan, heads, -1)


def _own(weights: Tensor, own_v: Tensor) -> Tensor:
    """What tokens take from their own segment; weights (parents, kv, shared, children, width, width)."""
    parents, kv_heads, shared, children, width, _ = weights.shape
    rows = weights.permute(0, 3, 1, 2, 4, 5).reshape(parents * children, kv_heads, shared * width, width)
    result = (rows @ own_v).view(parents * children, kv_heads, shared, width, -1)
    return result.permute(0, 3, 1, 2, 4).reshape(parents * children * width, kv_heads * shared, -1)


class _Spread(torch.autograd.Function):
    """Tokens to the slots of a level's grid. Padding repeats some token, and its gradient is dropped: it is 0, as
    nothing of a padded slot is collected and no token sees one. Indexing would add gradients up one by one."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, slots: Tensor, taken: Tensor) -> Tensor:
        ctx.save_for_backward(taken)
        return tokens[slots]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (taken,) = ctx.saved_tensors
        return gradients[0][taken], None, None


class _Collect(torch.autograd.Function):
    """Tokens back from their slots."""

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
