"""Ranks with other numbers of chunks of logits hold one policy together, under every ZeRO stage."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra deepspeed"),
]


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_stage_gives_the_gradient_of_plain_torch(tmp_path, ranks):
    """The head called once a chunk would end in a collective that the other rank does not join."""
    processes = []
    for rank in range(ranks):
        command = [
            sys.executable,
            "-m",
            "tests.learn.deepspeed.head_on_ranks",
            str(tmp_path / "store"),
            str(tmp_path / str(rank)),
        ]
        env = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "PYTHONPATH": str(ROOT)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # ranks meet in the store: no port is opened
        log = (tmp_path / f"log{rank}").open("w")
        processes.append(subprocess.Popen(command, cwd=tmp_path, env=os.environ | env, stdout=log, stderr=log))
    try:
        for rank, process in enumerate(processes):
            assert process.wait(timeout=300) == 0, (tmp_path / f"log{rank}").read_text()[-3000:]
    finally:
        for process in processes:
            process.kill()
    results = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(ranks)]
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
