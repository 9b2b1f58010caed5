"""Attention inside packed trees: every token sees its ancestors' tokens and those before it in its own segment.

Registered with transformers under one name, so that embedding, norms, projections, gradient checkpointing and ZeRO are
the model's own. Without a tree it is plain SDPA, or for one new token a row (sampling on CPUs) two matrix products.

* levels: depth by depth, works on every device. Segments longer than their path in SDPA, each with a copy of the path;
  shorter ones in matrix products of all children of a parent with the path, copied once, keeping attention weights.
* flex: FlexAttention over the packed row with the ancestor mask. Has no backward pass on CPUs.
* dense: SDPA over the packed row with the same mask written out; what the tests compare flex with.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from spo_core.learn.tree_batch import Level, TreeBatch

NAME = "spo_tree"


def ancestor_mask(batch: TreeBatch) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """FlexAttention's mask_mod: whether packed token ``q`` sees packed token ``k``."""
    first, last = batch.first, batch.last

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (first[k] <= first[q]) & (first[q] <= last[k])

    return sees


def attention_arguments(batch: TreeBatch, kind: str) -> dict[str, Any]:
    """What the model's forward is given: a 4-D mask, which transformers hands on as it is, and the tree."""
    device, tokens = batch.input_ids.device, batch.forwarded_tokens
    if kind == "flex":
        mask = create_block_mask(ancestor_mask(batch), None, None, tokens, tokens, device=device)
        return {"attention_mask": mask, "tree": batch}
    if kind == "dense":
        at = torch.arange(tokens, device=device)
        return {"attention_mask": ancestor_mask(batch)(at, at, at[:, None], at[None])[None, None], "tree": batch}
    return {"attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device), "tree": batch}


def tree_attention(
    module: nn.Module,
    query: Tensor,  # (1, heads, tokens, head dim)
    key: Tensor,  # (1, key/value heads, tokens, head dim)
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree: TreeBatch | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function of transformers; returns (batch, tokens, heads, head dim)."""
    if tree is None and query.shape[2] == 1 and query.device.type == "cpu" and not query.requires_grad:
        return _one_query(query, key, value, attention_mask, scaling), None
    if tree is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    if dropout:
        raise ValueError("the tree update is computed without attention dropout; set it to 0 in the policy's config")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(attention_mask, BlockMask):
        out = _flex()(query, key, value, block_mask=attention_mask, scale=scale, enable_gqa=True)
        return out.transpose(1, 2), None
    if attention_mask.shape[-1] > 1 or tree.forwarded_tokens == 1:
        mask = attention_mask.expand(1, 1, tree.forwarded_tokens, tree.forwarded_tokens)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)
        return out.transpose(1, 2), None
    return _by_levels(query, key, value, tree, scale)[None], None


def _one_query(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Decoding: one new token a row, (rows, 1, heads, head dim). On CPUs SDPA takes twice as long as two products."""
    rows, heads, _, dim = query.shape
    kv_heads = key.shape[1]
    grouped = query.view(rows, kv_heads, heads // kv_heads, dim) * (dim**-0.5 if scaling is None else scaling)
    scores = grouped @ key.transpose(2, 3)  # (rows, kv heads, shared, keys)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return (scores.float().softmax(-1).to(value.dtype) @ value).view(rows, 1, heads, dim)


@cache
def _flex() -> Callable[..., Any]:
    compiled: Any = torch.compile(flex_attention, dynamic=True)
    return compiled if torch.cuda.is_available() else flex_attention


def _by_levels(query: Tensor, key: Tensor, value: Tensor, tree: TreeBatch, scale: float) -> Tensor:
    """(tokens, heads, head dim), one level after another."""
    sizes = [level.stop - level.start for level in tree.levels]
    rows = [x[0].transpose(0, 1) for x in (query * scale, key, value)]  # (tokens, heads, head dim)
    queries, keys, values = (x.split(sizes) for x in rows)
    flat_keys, flat_values = rows[1].flatten(1), rows[2].flatten(1)
    out = []
    for level, q, k, v in zip(tree.levels, queries, keys, values, strict=True):
        out.append(_level(level, q, k, v, flat_keys, flat_values))
    return torch.cat(out)


def _level(level: Level, q: Tensor, k: Tensor, v: Tensor, all_keys: Tensor, all_values: Tensor) -> Tensor:
    """Attention of one level's tokens; q (tokens, heads, dim), k and v (tokens, kv heads, dim), all_* (packed, -1)."""
    parents, _, width = level.grid
    kv_heads, dim = k.shape[1:]
    if level.slots is not None and level.taken is not None:
        q, k, v = (_Spread.apply(x, level.slots.flatten(), level.taken) for x in (q, k, v))
    shape = (parents, level.path.shape[1], kv_heads, dim)
    path_k, path_v = (F.embedding(level.path, x).view(shape) for x in (all_keys, all_values))
    # a copy of the path for every child pays where it is short; sharing it keeps width x width weights of every child
    attend = _alone if width >= shape[1] else _together
    result = attend(level, q, k, v, path_k, path_v)
    if level.slots is None or level.taken is None:
        return result
    return _Collect.apply(result, level.taken)


def _alone(level: Level, q: Tensor, k: Tensor, v: Tensor, path_k: Tensor, path_v: Tensor) -> Tensor:
    """Each segment with its own copy of its parent's path, in SDPA; (grid slots, heads, dim)."""
    parents, children, width = level.grid
    rows, length = parents * children, path_k.shape[1]

    def keys(path: Tensor, own: Tensor) -> Tensor:
        copies = path[:, None].expand(-1, children, -1, -1, -1).flatten(0, 1)
        return torch.cat([copies, own.view(rows, width, *own.shape[1:])], 1).transpose(1, 2)

    causal = torch.ones(width, width, dtype=torch.bool, device=q.device).tril()
    mask = torch.cat([causal.new_ones(width, length), causal], 1)
    if level.path_valid is not None:
        valid = level.path_valid[:, None, None].expand(-1, children, width, -1).flatten(0, 1)
        mask = torch.cat([valid, causal.expand(rows, -1, -1)], -1)[:, None]
    queries = q.view(rows, width, *q.shape[1:]).transpose(1, 2)
    out = F.scaled_dot_product_attention(
        queries, keys(path_k, k), keys(path_v, v), attn_mask=mask, scale=1.0, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.transpose(1, 2).flatten(0, 1)


def _together(level: Level, q: Tensor, k: Tensor, v: Tensor, path_k: Tensor, path_v: Tensor) -> Tensor:
    """All children of a parent in one product with its path; (grid slots, heads, dim)."""
    parents, children, width = level.grid
    heads, kv_heads, dim, length = q.shape[1], k.shape[1], q.shape[2], path_k.shape[1]
    shared, fan = heads // kv_heads, children * width
    # heads that share keys stand side by side as rows of one matrix product
    own_q = q.view(parents * children, width, kv_heads, shared, dim).permute(0, 2, 3, 1, 4).flatten(2, 3)
    own_k = k.view(parents * children, width, kv_heads, dim).permute(0, 2, 3, 1)
    own_v = v.view(parents * children, width, kv_heads, dim).transpose(1, 2)
    later = torch.full((width, width), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    own = torch.baddbmm(later.repeat(shared, 1), own_q.flatten(0, 1), own_k.flatten(0, 1))
    own = own.view(parents, children, kv_heads, shared, width, width).permute(0, 2, 3, 1, 4, 5)
    path_q = q.view(parents, fan, kv_heads, shared, dim).permute(0, 2, 3, 1, 4).flatten(2, 3)
    scores = path_q @ path_k.permute(0, 2, 3, 1)  # (parents, kv, shared * fan, length)
    if level.path_valid is not None:
        scores = scores.masked_fill(~level.path_valid[:, None, None], float("-inf"))
    scores = scores.view(parents, kv_heads, shared, children, width, length)
    weights = torch.cat([scores, own], -1).float().softmax(-1).to(v.dtype)
    above, inside = weights.split([length, width], -1)
    before = above.reshape(parents, kv_heads, shared * fan, length) @ path_v.transpose(1, 2)
    before = before.view(parents, kv_heads, shared, fan, dim).permute(0, 3, 1, 2, 4)
    return _own(inside, own_v, level) + before.reshape(parents * fan, heads, dim)


def _own(weights: Tensor, own_v: Tensor, level: Level) -> Tensor:
    """What tokens take from their own segment; weights (parents, kv, shared, children, width, width)."""
    parents, children, width = level.grid
    kv_heads, shared, dim = weights.shape[1], weights.shape[2], own_v.shape[-1]
    rows = weights.permute(0, 3, 1, 2, 4, 5).reshape(parents * children, kv_heads, shared * width, width)
    result = (rows @ own_v).view(parents * children, kv_heads, shared, width, dim)
    return result.permute(0, 3, 1, 2, 4).reshape(parents * children * width, kv_heads * shared, dim)


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


ALL_ATTENTION_FUNCTIONS.register(NAME, tree_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
