"""The sketch of a gradient is linear, seeded, and keeps inner products as closely as it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_core.analysis import sketch as module
from spo_core.analysis.sketch import WIDTH, relative_error, sketch


def vector(seed: int, size: int = 5000) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 2**63 - 1), st.integers(1, 300), st.floats(-3, 3), st.floats(-3, 3))
@settings(max_examples=40, deadline=None)
def test_linear(seed, size, a, b):
    x, y = vector(1, size).double(), vector(2, size).double()
    together = sketch([a * x + b * y], seed, width=64)
    torch.testing.assert_close(together, a * sketch([x], seed, 64) + b * sketch([y], seed, 64), rtol=1e-4, atol=1e-4)


@given(st.integers(0, 2**63 - 1), st.lists(st.integers(0, 40), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_one_tensor_or_many_are_the_same(seed, sizes):
    whole = vector(3, sum(sizes))
    split = list(whole.split(sizes))
    assert torch.equal(sketch([whole], seed, 32), sketch(split, seed, 32))
    square = vector(4, 24)
    assert torch.equal(sketch([square.reshape(4, 6)], seed, 32), sketch([square], seed, 32))


def test_every_entry_goes_to_one_place_with_a_sign():
    """So the sketch of many is the sum of the sketches of single entries; places and signs are spread evenly."""
    width, size = 16, 4096
    columns = torch.stack([sketch([torch.zeros(i), torch.ones(1)], 7, width) for i in range(size)])
    assert torch.equal(columns.abs().sum(1), torch.ones(size)) and ((columns != 0).sum(1) == 1).all()
    x = vector(5, size)
    torch.testing.assert_close(sketch([x], 7, width), columns.T @ x, rtol=1e-4, atol=1e-4)
    counts = columns.abs().sum(0)
    assert float(((counts - size / width) ** 2 / (size / width)).sum()) < 40, "chi squared of 15 degrees of freedom"
    assert abs(float(columns.sum())) < 4 * math.sqrt(size)


def test_seeds_differ_and_are_repeatable():
    x = vector(6)
    assert torch.equal(sketch([x], 1), sketch([x], 1))
    apart = [sketch([x], seed, 512) for seed in (0, 1, 2, 2**61 + 1)]
    for i, a in enumerate(apart):
        for b in apart[:i]:
            assert abs(float(torch.cosine_similarity(a, b, dim=0))) < 0.25


@pytest.mark.parametrize("width", [64, 1024])
def test_inner_products_are_unbiased_and_as_close_as_stated(width):
    x, y = vector(7, 4000), vector(7, 4000) + vector(8, 4000)
    squares, products = [], []
    for seed in range(200):
        a, b = sketch([x], seed, width), sketch([y], seed, width)
        squares.append(float(a @ a) / float(x @ x))
        products.append(float(a @ b) / float(x.norm() * y.norm()))
    stated = relative_error(width)
    assert abs(np.mean(squares) - 1) < 3 * stated / math.sqrt(200)
    assert 0.8 * stated < np.std(squares) < 1.2 * stated
    assert abs(np.mean(products) - float(torch.cosine_similarity(x, y, dim=0))) < 3 * stated / math.sqrt(200)
    assert np.std(products) < 1.2 * stated


def test_a_single_large_entry_is_kept_exactly():
    """The stated error is an upper bound: it is that of gradients spread over many parameters."""
    x = torch.zeros(1000)
    x[17] = 3.0
    assert all(float(sketch([x], seed, 64).norm()) == pytest.approx(3.0) for seed in range(5))


def test_chunks_change_nothing(monkeypatch):
    x = [vector(9, 1000).reshape(10, 100), vector(10, 7)]
    whole = sketch(x, 3)
    monkeypatch.setattr(module, "_CHUNK", 64)
    assert torch.equal(sketch(x, 3), whole)


def test_a_rounded_gradient_is_projected_as_its_numbers_are():
    x = vector(11).bfloat16().requires_grad_()
    found = sketch([x], 3)
    assert torch.equal(found, sketch([x.detach().double()], 3))
    assert found.shape == (WIDTH,) and found.dtype == torch.float32 and not found.requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_projects_as_the_cpu_does():
    x = vector(12, 100_000)
    torch.testing.assert_close(sketch([x.cuda()], 3), sketch([x], 3), rtol=1e-5, atol=1e-5)


def test_no_parameter_is_refused():
    with pytest.raises(ValueError, match="no parameter"):
        sketch([], 0)
