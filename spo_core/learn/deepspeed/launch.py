"""Command lines of DeepSpeed's launcher, and the environment of the ranks it starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

import spo_core
from spo_core.errors import ConfigError

VISIBLE = "CUDA_VISIBLE_DEVICES"


def launch_on_hosts(hosts: Mapping[str, int], hostfile: Path, config: Path, master: tuple[str, int]) -> list[str]:
    """Command that starts ``hosts[name]`` ranks on each machine by pdsh and ssh; they meet at ``master``'s port."""
    chosen = "@".join(f"{host}:{','.join(map(str, range(count)))}" for host, count in hosts.items())
    there = ["--master_addr", master[0], "--master_port", str(master[1])]
    # --force_multi: a single host need not be this machine; --no_ssh_check: pdsh itself says which it cannot reach
    options = ["--hostfile", str(hostfile), "--include", chosen, "--force_multi", "--no_ssh_check", *there]
    return _launcher(options, config)


def launch_here(ranks: int, hostfile: Path, config: Path) -> list[str]:
    """Command that starts ``ranks`` ranks on this machine. ``hostfile`` names no file: the launcher has a default.

    Raises ConfigError where this machine has GPUs, but fewer than ranks.
    """
    if torch.cuda.is_available() and ranks > torch.cuda.device_count():
        raise ConfigError(f"learn.backend.ranks {ranks} exceeds the {torch.cuda.device_count()} GPUs here")
    return _launcher(["--num_gpus", str(ranks), "--hostfile", str(hostfile)], config)


def _launcher(options: list[str], config: Path) -> list[str]:
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", *options, "--module", "--no_local_rank"]
    return [*launcher, "spo_core.learn.deepspeed.rank_process", str(config)]


def environment(ranks: int) -> dict[str, str]:
    """Environment of ranks on this machine: they share its CPU threads and communicate over loopback only."""
    loopback = "lo" if sys.platform == "linux" else "lo0"
    env = {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback} | launcher_environment()
    if not torch.cuda.is_available():
        env |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": _threads(ranks)}
    return env


def visible_devices() -> dict[str, str]:
    """Environment that names the GPUs of this machine's ranks: those this process may use, by number, UUID or MIG name.

    A rank sets it before torch reads it: the launcher knows numbers alone, and gives ranks the machine's GPUs 0, 1, ...
    """
    return {VISIBLE: os.environ[VISIBLE]} if VISIBLE in os.environ else {}


def launcher_environment() -> dict[str, str]:
    """Environment of the launcher, which hands PYTHONPATH on to other machines."""
    code = str(Path(spo_core.__file__).resolve().parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")]))}


def rank_environment(most: int) -> dict[str, str]:
    """Environment of ranks on other machines, at most ``most`` on one: CPU threads, and any NCCL and Gloo settings."""
    chosen = {name: value for name, value in os.environ.items() if name.startswith(("NCCL_", "GLOO_"))}
    return chosen | {"OMP_NUM_THREADS": _threads(most)}


def _threads(ranks: int) -> str:
    return str(max(1, torch.get_num_threads() // ranks))
