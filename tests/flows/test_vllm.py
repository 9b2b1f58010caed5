"""A flow whose rollouts vLLM servers make: it ends when it is told to, and nothing of it is left."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from spo_core.rollout.vllm.server import LAUNCHER
from spo_core.system.files import read_json
from tests.rollout.vllm.case import needs_vllm

pytestmark = needs_vllm


@pytest.fixture(scope="module")
def project(warmed_copy) -> Path:
    """Prepared and warmed up, with one vLLM server as its engine."""
    engine = {"type": "vllm", "servers": 1, "cache_gib": 0.25}
    return warmed_copy({"rollout": {"engine": engine}, "run": {"iterations": 200}})  # no flow ends by itself


@pytest.mark.parametrize("ending", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.exhaustive)])
def test_no_engine_process_outlives_the_flow(project, environment, tmp_path, ending):
    """Ctrl-C ends it within ten seconds; ``kill -9`` leaves no process. The second flow goes on from the first."""
    done = len(list(project.glob("work/train-*/iterations/*/COMPLETE")))
    moment = f"work/train-*/iterations/{done + 1:06d}/COMPLETE"
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.train"],
        cwd=project,
        env=environment | {"DVC_STAGE": "train"},
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a job that runs in the background
    )
    started = time.monotonic()
    while not any(project.glob(moment)):
        assert process.poll() is None and time.monotonic() - started < 300, (tmp_path / "log").read_text()[-3000:]
        time.sleep(0.02)
    engine = psutil.Process(process.pid).children(recursive=True)
    assert any(LAUNCHER in child.cmdline() for child in engine)
    told = time.monotonic()
    process.send_signal(ending)
    process.wait(timeout=60)
    seconds = time.monotonic() - told
    _, left = psutil.wait_procs(engine, timeout=10)
    assert not [p for p in left if p.status() != psutil.STATUS_ZOMBIE]
    assert seconds < 10
    (row_file,) = project.glob(moment.replace("COMPLETE", "metrics.json"))
    row = read_json(row_file)
    assert row["sync/logprob_gap_max"] < 1e-3 and row["rollout/engine_restarts"] == 0
