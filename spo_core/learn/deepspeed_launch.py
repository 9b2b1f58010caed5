"""How ranks are started: the command line of DeepSpeed's launcher, and the environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

import spo_core
from spo_core.errors import ConfigError


def launch_command(ranks: int, hostfile: Path, config: Path) -> list[str]:
    """DeepSpeed's launcher; a hostfile that does not exist keeps it on this machine.

    Raises ConfigError where there are GPUs, but fewer than ranks.
    """
    if torch.cuda.is_available() and ranks > torch.cuda.device_count():
        raise ConfigError(f"learn.backend.ranks {ranks} exceeds the {torch.cuda.device_count()} GPUs here")
    visible = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d.isdigit()]
    chosen = ["--num_gpus", str(ranks)]
    if torch.cuda.is_available() and visible:  # the launcher forgets them when it is given a number
        chosen = ["--include", f"localhost:{','.join(visible[:ranks])}"]
    options = ["--hostfile", str(hostfile), "--module", "--no_local_rank"]
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", *chosen, *options]
    return [*launcher, "spo_core.learn.deepspeed_worker", str(config)]


def environment(ranks: int) -> dict[str, str]:
    """CPU threads are shared among ranks; what ranks tell each other stays on this machine."""
    loopback = "lo" if sys.platform == "linux" else "lo0"
    code = str(Path(spo_core.__file__).resolve().parents[1])
    env = {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback} | os.environ
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")]))
    if not torch.cuda.is_available():
        env |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // ranks))}
    return env
