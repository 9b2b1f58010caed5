"""The mask by blocks against the mask written out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from spo_core.learn import block_mask as module
from spo_core.learn.block_mask import Spans, ancestor_mask, block_mask
from spo_core.learn.tree_batch import TreeBatch, layout
from tests.conftest import random_tree
from tests.learn.test_tree_forward import everything, full_tree, masked


def spans_of(batch: TreeBatch, window: int | None) -> Spans:
    positions = batch.position_ids
    reach = torch.zeros_like(positions) if window is None else (positions - window + 1).clamp(min=0)
    return Spans(batch.first, batch.last, positions, reach)


def written_out(spans: Spans) -> torch.Tensor:
    at = torch.arange(len(spans.first))
    return ancestor_mask(spans)(at, at, at[:, None], at[None])


def by_blocks(mask: torch.Tensor, size: int) -> torch.Tensor:
    """Bool (blocks, blocks, size, size), padded with False."""
    missing = -len(mask) % size
    padded = torch.nn.functional.pad(mask, (0, missing, 0, missing))
    count = len(padded) // size
    return padded.view(count, size, count, size).transpose(1, 2)


def listed(counts: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Bool (blocks, blocks), from numbers and lists of blocks."""
    result = torch.zeros(indices.shape[-2:], dtype=torch.bool)
    for row, count in enumerate(counts[0, 0].tolist()):
        chosen = indices[0, 0, row, :count].tolist()
        assert chosen == sorted(set(chosen))
        result[row, chosen] = True
    return result


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    window=st.none() | st.integers(1, 30),
    size=st.sampled_from([2, 3, 4, 8, 16]),
    depth=st.integers(1, 8),
)
def test_full_blocks_are_full_and_none_is_missing(seed, window, size, depth):
    rng = np.random.default_rng(seed)
    share = rng.choice([0.1, 0.6, 1.0])
    batch = layout([masked(rng, random_tree(rng, depth=depth, widest=2, longest=9), share) for _ in range(3)])
    if not batch.forwarded_tokens:
        return
    spans = spans_of(batch, window)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", size)
        mask = block_mask(spans)
    blocks = by_blocks(written_out(spans), size)
    full, partial = listed(mask.full_kv_num_blocks, mask.full_kv_indices), listed(mask.kv_num_blocks, mask.kv_indices)
    assert torch.equal(full, blocks.all(-1).all(-1)), "exactly the full ones"
    assert not (full & partial).any()
    assert not (blocks.any(-1).any(-1) & ~full & ~partial).any(), "a block that is seen is missing"
    assert torch.equal(listed(mask.q_num_blocks, mask.q_indices), partial.T), "of the backward pass"
    assert torch.equal(listed(mask.full_q_num_blocks, mask.full_q_indices), full.T)


@pytest.mark.parametrize(("window", "excess"), [(None, 1.1), (128, 1.5)])
@pytest.mark.parametrize(
    ("factors", "prompt", "segment"), [([4, 4, 3], 150, 60), ([4, 3], 300, 300), ([1] * 40 + [9], 100, 60)]
)
def test_few_blocks_are_computed_in_vain(factors, prompt, segment, window, excess):
    spans = spans_of(layout([everything(full_tree(factors, prompt, segment))]), window)
    mask = block_mask(spans)
    seen = by_blocks(written_out(spans), module.BLOCK).any(-1).any(-1)
    computed = int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())
    assert int(seen.sum()) <= computed <= excess * int(seen.sum())


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("window", [None, 4096])
def test_65_thousand_tokens_need_no_dense_mask(window):
    batch = layout([everything(full_tree([6, 6, 2], 500, 576))])
    assert batch.forwarded_tokens > 65_000
    spans = spans_of(batch, window)
    with Largest() as largest:
        mask = block_mask(spans)
    blocks = -(-batch.forwarded_tokens // module.BLOCK)
    assert largest.elements <= blocks**2 + module.BLOCK * blocks
    assert mask.shape == (1, 1, batch.forwarded_tokens, batch.forwarded_tokens)
    assert mask.sparsity() > 70


@pytest.mark.exhaustive
@pytest.mark.parametrize("window", [None, 90])
def test_the_kernel_that_walks_blocks_gives_dense_attention(window):
    """Compiled for the CPU, where FlexAttention takes blocks as a GPU does; forward only."""
    torch.manual_seed(0)
    spans = spans_of(layout([everything(full_tree([3, 3], 150, 41))]), window)
    tokens = len(spans.first)
    assert tokens > 3 * module.BLOCK and tokens % module.BLOCK
    query, key, value = torch.randn(1, 4, tokens, 16), torch.randn(1, 2, tokens, 16), torch.randn(1, 2, tokens, 16)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=written_out(spans), enable_gqa=True
    )
    compiled = torch.compile(flex_attention, dynamic=True)
    with torch.no_grad():
        found = compiled(query, key, value, block_mask=block_mask(spans), enable_gqa=True)
    assert torch.allclose(found, expected, atol=1e-5)
