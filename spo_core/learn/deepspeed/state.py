"""Saves and loads optimizer state and weights under any ZeRO stage, in the files that one device writes: whole float32
tensors, as safetensors. DeepSpeed's own checkpoints are pickles, and bound to a number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from spo_core.errors import RunError
from spo_core.learn.state import load_optimizer, save_optimizer
from spo_core.policy.adapter import trained_parameters

MOMENTS = ("exp_avg", "exp_avg_sq")


class ShardedState:
    """Saves and restores the state of one DeepSpeed engine. Every rank makes the same calls; only rank 0 writes."""

    def __init__(self, engine: Any, model: PreTrainedModel, adam: torch.optim.Optimizer, stage: int) -> None:
        self.engine, self.model, self.adam, self.stage = engine, model, adam, stage
        self.parameters = trained_parameters(model)

    def save_optimizer(self, path: Path) -> None:
        """Save the optimizer's state as spo_core.learn.state does."""
        if self.stage == 0:
            if self._writes:
                save_optimizer(path, self.model, self.adam)
            return
        tensors: dict[str, Tensor] = {}
        if self.adam.state:
            step = next(iter(self.adam.state.values()))["step"]
            for name, parameter in self.parameters.items():
                tensors[f"{name}/step"] = torch.as_tensor(step).detach().cpu().clone()
                for key in MOMENTS:
                    self._keep(tensors, f"{name}/{key}", self._whole(parameter, key))
        if self._writes:
            save_file(tensors, path)

    def load_optimizer(self, path: Path) -> None:
        """Read what any backend saved. Raises RunError where it does not fit the model, or ZeRO cannot divide it."""
        if self.stage == 0:
            load_optimizer(path, self.model, self.adam)
            return
        self._make_state()
        shapes = {name: _shape(parameter) for name, parameter in self.parameters.items()}
        steps = {0.0}
        with safe_open(path, framework="pt") as file:
            for full_name in list(file.keys()):
                name, _, key = full_name.rpartition("/")
                tensor = file.get_tensor(full_name)
                if name not in shapes or (tensor.ndim and tensor.shape != shapes[name]):
                    raise RunError(f"{path}: {full_name} does not fit the policy; this checkpoint is of another one")
                if key == "step":
                    steps.add(float(tensor))
                else:
                    self._set(self.parameters[name], tensor, key)
        if len(steps) > 2:
            raise RunError(f"{path}: parameters with different step counts {sorted(steps)} cannot be divided by ZeRO")
        for state in self.adam.state.values():
            state["step"].fill_(max(steps))

    def save_weights(self, path: Path) -> None:
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            self._keep(tensors, name, self._whole(parameter))
        if self._writes:
            save_file(tensors, path, metadata={"format": "pt"})

    def load_weights(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in list(file.keys())}
        for name, parameter in self.parameters.items():
            if name not in weights or weights[name].shape != _shape(parameter):
                raise RunError(f"{path}: {name} does not fit the policy; these weights are of another one")
        self.set_weights(weights)

    @torch.no_grad()
    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Set the weights of optimizer and model to whole float32 tensors, given by name."""
        for name, parameter in self.parameters.items():
            self._set(parameter, weights[name])
        optimizer = self.engine.optimizer
        if self.stage == 3:
            optimizer._partition_all_parameters()
            for group in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(group)
            if optimizer.persistent_parameters:
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
        elif self.stage:
            optimizer.update_lp_params()

    @property
    def _writes(self) -> bool:
        return torch.distributed.get_rank() == 0

    def _keep(self, tensors: dict[str, Tensor], name: str, whole: Tensor) -> None:
        if self._writes:
            tensors[name] = whole.detach().float().cpu().clone().contiguous()

    def _whole(self, parameter: Tensor, key: str | None = None) -> Tensor:
        """A parameter's moment ``key`` or, without a key, its weights; collected from all ranks."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self.stage == 0:
            return parameter
        return safe_get_full_optimizer_state(parameter, key) if key else safe_get_full_fp32_param(parameter)

    def _set(self, parameter: Tensor, whole: Tensor, key: str | None = None) -> None:
        """Set this rank's part of a parameter's moment ``key`` or, without a key, of its weights, from ``whole``."""
        from deepspeed import utils

        whole = whole.to(self.engine.device, torch.float32)
        if self.stage == 0:
            parameter.copy_(whole)
        elif self.stage == 3:  # DeepSpeed's call for whole tensors fails where ranks do not divide them evenly
            part = _part(parameter, whole)
            if key:
                utils.safe_set_local_optimizer_state(parameter, part, key)
            else:
                utils.safe_set_local_fp32_param(parameter, part)
        elif key:
            utils.safe_set_full_optimizer_state(parameter, whole, key)
        else:
            utils.safe_set_full_fp32_param(parameter, whole)

    def _make_state(self) -> None:
        """Make the optimizer's state, zeros as before the first step; AdamW itself makes it in that step only."""
        optimizer = self.engine.optimizer
        owned = [p for group in self.adam.param_groups for p in group["params"]]
        for flat in optimizer.fp32_partitioned_groups_flat if self.stage == 3 else owned:
            self.adam.state[flat] = {"step": torch.tensor(0.0)} | {key: torch.zeros_like(flat.data) for key in MOMENTS}
        if self.stage != 3:
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()


def _shape(parameter: Tensor) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def _part(parameter: Any, whole: Tensor) -> Tensor:
    """This rank's slice of a tensor that stage 3 divides, filled up with zeros at the end."""
    size = parameter.ds_tensor.numel()
    start = torch.distributed.get_rank() * size
    part = whole.flatten()[start : start + size]
    return torch.cat([part, part.new_zeros(size - len(part))])
