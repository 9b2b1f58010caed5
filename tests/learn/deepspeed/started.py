"""Starts a module of these tests once a rank, without DeepSpeed's launcher, and reads what each rank found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import ROOT


def on_ranks(module: str, ranks: int, folder: Path, *more: str) -> list[Any]:
    """Run ``python -m module STORE RESULT MORE`` in ``ranks`` processes with RANK set; returns the results by rank.

    Ranks meet in the store, so that no port is opened."""
    processes = []
    for rank in range(ranks):
        command = [sys.executable, "-m", module, str(folder / "store"), str(folder / f"result{rank}"), *more]
        env = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "PYTHONPATH": str(ROOT)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        log = (folder / f"log{rank}").open("w")
        processes.append(subprocess.Popen(command, cwd=folder, env=os.environ | env, stdout=log, stderr=log))
    try:
        for rank, process in enumerate(processes):
            assert process.wait(timeout=300) == 0, (folder / f"log{rank}").read_text()[-3000:]
    finally:
        for process in processes:
            process.kill()
    return [json.loads((folder / f"result{rank}").read_text()) for rank in range(ranks)]
