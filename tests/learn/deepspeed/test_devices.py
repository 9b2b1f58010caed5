"""Ranks use the GPUs that the flow may use, however these are named. The launcher is a stand-in that does as
DeepSpeed's does: it forgets CUDA_VISIBLE_DEVICES and has ranks see the numbers 0, 1, ..."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch

from spo_core.config import DeepSpeedBackendParams
from spo_core.errors import ConfigError
from spo_core.learn.deepspeed import ranks as deepspeed_ranks
from spo_core.learn.deepspeed.launch import launch_here
from spo_core.learn.deepspeed.ranks import Ranks

LAUNCHER = """
import multiprocessing, os, sys, threading
from pathlib import Path
from spo_core.learn.deepspeed import rank_process as deepspeed_worker

def serve(channel, settings, rank):
    assert "torch" not in sys.modules, "torch may have looked for GPUs before it was told which"
    channel.send(rank=rank, answer=os.environ.get("CUDA_VISIBLE_DEVICES"))
    threading.Event().wait()

def run(rank, ranks, config):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(ranks)))}
    deepspeed_worker.serve = serve
    deepspeed_worker.main(Path(config))

if __name__ == "__main__":
    ranks = int(sys.argv[1])
    fork = multiprocessing.get_context("fork")
    started = [fork.Process(target=run, args=(n, ranks, sys.argv[2])) for n in range(ranks)]
    for one in started:
        one.start()
    for one in started:
        one.join()
"""
UUIDS = "GPU-5ebe9f43-ac33-420a-b83d-5f0e4d1dc2a9,GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
MIG = "MIG-0c757cd7-e942-5726-a0b8-0e8fb7067135"
NAMES = ["0,1", "3,1", UUIDS, MIG, f"MIG-{UUIDS.split(',')[0]}/7/0", "GPU-5ebe", f"2,{UUIDS}", "", None]


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("name", NAMES)
def test_ranks_see_the_gpus_of_the_flow(name, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if name is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", name)

    def launch(ranks, hostfile, config):
        (tmp_path / "launcher.py").write_text(LAUNCHER)
        return [sys.executable, str(tmp_path / "launcher.py"), str(ranks), str(config)]

    monkeypatch.setattr(deepspeed_ranks, "launch_here", launch)
    ranks = Ranks({}, DeepSpeedBackendParams(type="deepspeed", ranks=2), folder=tmp_path, log=tmp_path / "log")
    try:
        assert ranks.ask()["answer"] == ("0,1" if name is None else name)
    finally:
        ranks.close()


def test_the_launcher_is_given_a_number_of_ranks_that_there_are_gpus_for(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", UUIDS)
    command = launch_here(2, tmp_path / "no-hosts", tmp_path / "settings.json")
    assert command[command.index("--num_gpus") + 1] == "2" and "--include" not in command
    with pytest.raises(ConfigError, match=r"ranks 3 exceeds the 2 GPUs here"):
        launch_here(3, tmp_path / "no-hosts", tmp_path / "settings.json")


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra deepspeed")
@pytest.mark.parametrize("name", [UUIDS, MIG])
def test_deepspeed_measures_free_memory_of_gpus_without_numbers(name, monkeypatch):
    """It divides weights only after it has asked for that."""
    from deepspeed.accelerator import cuda_accelerator

    from spo_core.learn.deepspeed.backend import measure_by_torch

    device = cuda_accelerator.CUDA_Accelerator.__new__(cuda_accelerator.CUDA_Accelerator)
    for method, value in {"current_device": 0, "total_memory": 80, "memory_allocated": 30}.items():
        monkeypatch.setattr(device, method, lambda *_, value=value: value, raising=False)
    nvml = SimpleNamespace(
        nvmlDeviceGetHandleByIndex=int, nvmlDeviceGetMemoryInfo=lambda index: SimpleNamespace(free=index)
    )
    monkeypatch.setattr(cuda_accelerator, "pynvml", nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", name)
    with pytest.raises(ValueError, match="invalid literal for int"):
        device.available_memory()
    measure_by_torch()
    assert device.available_memory() == 50
    monkeypatch.setattr(cuda_accelerator, "pynvml", nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,0")
    measure_by_torch()
    assert device.available_memory() == 7
