"""Ranks with other numbers of chunks of logits hold one policy together, under every ZeRO stage."""

from __future__ import annotations

import importlib.util

import pytest

from tests.learn.deepspeed.started import on_ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra deepspeed"),
]


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
def test_every_stage_gives_the_gradient_of_plain_torch(tmp_path, ranks):
    """The head called once a chunk would end in a collective that the other rank does not join."""
    results = on_ranks("tests.learn.deepspeed.head_on_ranks", ranks, tmp_path)
    assert len(results[0]) == 16
    for rank, result in enumerate(results):
        for case, found in result.items():
            exact = "float32" in case
            assert found["logprobs"] <= (2e-5 if exact else 0.3), (rank, case, found)
            assert found["gradient"] <= (1e-5 if exact else 0.05), (rank, case, found)
            assert found["head_calls"] == 1 and found["chunks"] > 1 and found["entropies"] == 0
    if ranks == 2:
        first, second = ([found["chunks"] for found in result.values()] for result in results)
        assert all(a != b for a, b in zip(first, second, strict=True)), "equal counts show nothing"
