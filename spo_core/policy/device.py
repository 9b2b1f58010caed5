"""The device on which a process computes with the policy, as ``run.device`` names it."""

from __future__ import annotations

import torch

from spo_core.errors import ConfigError


def find_device(chosen: str) -> torch.device:
    """The device that ``run.device`` names, with its number. Raises ConfigError where this machine lacks it."""
    if chosen == "cpu" or (chosen == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = 0 if ":" not in chosen else int(chosen.partition(":")[2])
    if number >= count:
        there = "no GPU" if not count else "cuda:0 alone" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise ConfigError(f"run.device {chosen}: torch sees {there} here; set it to auto, or see CUDA_VISIBLE_DEVICES")
    return torch.device("cuda", number)


def use_device(device: torch.device) -> None:
    """Make a GPU torch's current one, for libraries that do not choose by number, as compiled kernels do not."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def peak_bytes(device: torch.device) -> int | None:
    """The most memory that this process has had allocated on a GPU; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def device_name(device: torch.device) -> str:
    """The GPU's product name, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
