"""Optimizer state as safetensors: named by parameter, so that loading can check every shape. No pickle."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from spo_core.errors import RunError


def save_optimizer(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write every state tensor as ``<parameter name>/<state key>``; hyper-parameters come from params."""
    names = {id(p): name for name, p in model.named_parameters()}
    tensors = {}
    for param, state in optimizer.state.items():
        for key, value in state.items():
            copied = torch.as_tensor(value).detach().to("cpu", copy=True)  # a GPU may have no room for a second one
            tensors[f"{names[id(param)]}/{key}"] = copied.contiguous()
    save_file(tensors, path)


def forget(optimizer: torch.optim.Optimizer) -> None:
    """Set the optimizer's state back to that before its first step: zeros, step counts too."""
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()


def load_optimizer(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read what ``save_optimizer`` wrote. Raises RunError where a tensor does not fit the model's parameters."""
    fused = {id(p): bool(group.get("fused")) for group in optimizer.param_groups for p in group["params"]}
    params = {name: p for name, p in model.named_parameters() if id(p) in fused}
    for full_name, tensor in load_file(path, device="cpu").items():
        name, _, key = full_name.rpartition("/")
        if name not in params or (tensor.ndim and tensor.shape != params[name].shape):
            raise RunError(f"{path}: {full_name} does not fit the policy; this checkpoint is of another one")
        param = params[name]
        beside = tensor.ndim or fused[id(param)]  # a step count lies on the device only where kernels are fused
        optimizer.state[param][key] = tensor.to(param.device) if beside else tensor
