"""The attention and mask functions of policies, registered with transformers under one name.

All else stays the model's own, also what a token may see: for each kind of layer (full, sliding, chunked) transformers
asks for a mask with a function of two positions, and gets it for tokens as they are laid out: in plain rows, or as the
layout given to ``laid_out`` says (a packed tree, slots of an engine).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "spo_tree"
CAUSAL: Any = causal_mask_function
Sees = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (batch, head, position of query, of key) -> bool

# arguments that models hand to attention functions and that an Attending may ignore: its mask already holds windows,
# and the rest is for kernels of packed rows or for outputs that nobody asks for
NEEDLESS = {"sliding_window", "is_causal", "position_ids", "cache_position", "use_cache", "output_attentions"}


class Layout(Protocol):
    """How the tokens of a forward pass are laid out; ``packed`` if a model's own mask would be wrong for them."""

    packed: bool

    def mask(self, sees: Sees) -> Any:
        """The mask of layers in which ``sees`` holds: a Tensor (batch, 1, queries, keys), or an Attending."""
        ...


class Attending(ABC):
    """A mask that computes attention itself."""

    __slots__ = ()

    @abstractmethod
    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, softcap: float | None, sinks: Tensor | None
    ) -> Tensor:
        """Map queries (1, heads, tokens, head dim), keys and values (1, key/value heads, tokens, head dim) to outputs
        (1, tokens, heads, value dim)."""


_layout: ContextVar[Layout | None] = ContextVar("layout", default=None)


@contextmanager
def laid_out(layout: Layout) -> Iterator[None]:
    """Give models their masks from ``layout`` in this context. They must be passed a 2-D ``attention_mask``: without
    one, transformers would guess packed sequences from the position ids."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


def make_mask(*, mask_function: Any, use_vmap: bool = False, **kwargs: Any) -> Any:
    """The mask function that transformers calls, with the arguments of its own ``sdpa_mask``."""
    layout = _layout.get()
    if layout is None:
        return sdpa_mask(mask_function=mask_function, use_vmap=use_vmap, **kwargs)
    if use_vmap:  # the model masks by a function of tokens, not of positions
        raise ValueError("it masks by more than positions")
    return layout.mask(mask_function)


def first_seen(sees: Sees, positions: Tensor) -> Tensor | None:
    """The first position that each of ``positions`` [n] sees, by bisection; None where all see from 0 on.

    What a query sees must be one run of positions up to its own, as in full, sliding and chunked attention.
    """
    if sees is CAUSAL:
        return None
    zero = torch.zeros_like(positions)
    low, high = zero, positions
    for _ in range(torch.iinfo(torch.int32).bits):
        middle = (low + high) // 2
        seen = sees(zero, zero, positions, middle)
        low, high = torch.where(seen, low, torch.minimum(middle + 1, high)), torch.where(seen, middle, high)
        if bool((low == high).all()):
            break
    return high if bool(high.any()) else None


def attention(
    module: nn.Module,
    query: Tensor,  # (batch, heads, queries, head dim)
    key: Tensor,  # (batch, key/value heads, keys, head dim)
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls; returns (batch, queries, heads, value dim).

    ``softcap`` bounds scores by softcap * tanh(score / softcap) (Gemma 2), ``s_aux`` [heads] are sinks: scores of one
    more key whose value is 0 (gpt-oss). Raises ValueError for arguments that the present layout cannot honour.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(attention_mask, Attending):
        unknown = sorted(name for name, given in kwargs.items() if given is not None and name not in NEEDLESS)
        if unknown or dropout:
            raise ValueError(f"its attention takes {' and '.join(unknown) or 'dropout'}")
        return attention_mask.attend(query, key, value, scale, softcap, s_aux), None
    layout = _layout.get()
    if layout is not None and layout.packed:
        raise ValueError("it makes its masks itself")
    if softcap is not None or s_aux is not None:
        if attention_mask is None and query.shape[2] > 1:
            attention_mask = query.new_ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
        if dropout:
            raise ValueError("dropout in attention with softcap or sinks")
        return products(query, key, value, attention_mask, scale, softcap, s_aux), None
    if query.shape[2] == 1 and not query.requires_grad:  # decoding: transformers would copy shared keys for each head
        shared = query.shape[1] != key.shape[1]
        out = F.scaled_dot_product_attention(query, key, value, attention_mask, scale=scale, enable_gqa=shared)
        return out.transpose(1, 2), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)


def products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention as two matrix products; shapes as ``attention``'s. ``mask``, bool or added to scores, must be
    broadcastable to (batch, 1, queries, keys)."""
    batch, heads, queries, dim = query.shape
    kv_heads, keys = key.shape[1:3]
    shared = heads // kv_heads
    # heads that share keys stand side by side as rows of one matrix product
    scores = (query.reshape(batch, kv_heads, shared * queries, dim) * scale) @ key.transpose(2, 3)
    scores = capped(scores, softcap)
    if mask is not None:
        scores = scores.view(batch, kv_heads, shared, queries, keys)
        mask = mask[:, :, None] if mask.ndim == 4 else mask
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    if sinks is not None:
        scores = scores.view(batch, kv_heads, shared, queries, keys)
        scores = torch.cat(
            [scores, sinks.to(scores.dtype).view(1, kv_heads, shared, 1, 1).expand_as(scores[..., :1])], -1
        )
    weights = scores.float().softmax(-1)[..., :keys].to(value.dtype)
    out = weights.reshape(batch, kv_heads, shared * queries, keys) @ value
    return out.view(batch, heads, queries, value.shape[-1]).transpose(1, 2)


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Scores within -softcap .. softcap."""
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, make_mask)
