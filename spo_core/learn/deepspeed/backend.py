"""The Backend of DeepSpeed's ranks, made by ``worker`` within each. Optimizer state and weights are saved and loaded as
one device does it, whatever the number of ranks and the ZeRO stage."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spo_core.config import LearnParams
from spo_core.learn.backend import first_weights, without_gradient
from spo_core.learn.deepspeed.launch import VISIBLE
from spo_core.learn.deepspeed.state import ShardedState
from spo_core.learn.state import forget
from spo_core.learn.tree_batch import TreeBatch
from spo_core.learn.tree_forward import TreePolicy
from spo_core.policy.adapter import adapter_off, has_adapter, trained_parameters


def join_ranks(store: Path | None) -> None:
    """Join the process group of all ranks: through the file ``store``, so that no port is opened, or, where it is None,
    at the address that the launcher gives to ranks on several machines."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().device_name() == "cpu":
        # empty, so that DeepSpeed compiles no operator; the one it would compile only speeds up the CPU's all-reduce
        deepspeed.ops.__dict__["__compatible_ops__"] = {}
    else:
        get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))
        measure_by_torch()
    if store is None:
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        return
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    deepspeed.init_distributed(init_method=f"file://{store}", rank=rank, world_size=ranks, verbose=False)


def measure_by_torch() -> None:
    """Have DeepSpeed ask torch, not NVML, for free memory where CUDA_VISIBLE_DEVICES holds UUIDs or MIG names: for NVML
    it would read them as numbers."""
    from deepspeed.accelerator import cuda_accelerator

    if not all(name.strip().isdigit() for name in os.environ.get(VISIBLE, "0").split(",")):
        cuda_accelerator.pynvml = None


class DeepSpeedBackend:
    """A Backend whose ranks are the processes that ``join_ranks`` brought together."""

    def __init__(self, model: PreTrainedModel, reference: PreTrainedModel | None, params: LearnParams) -> None:
        import deepspeed

        self.params, self.model = params, model
        self.rank, self.ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        policy = TreePolicy(model, params.attention, checkpointing=params.gradient_checkpointing)
        adam = torch.optim.AdamW(
            list(trained_parameters(model).values()),
            lr=params.learning_rate,
            betas=params.betas,
            eps=params.epsilon,
            weight_decay=params.weight_decay,
        )
        self.first = first_weights(model, params)
        weights = {name: p.detach().clone() for name, p in trained_parameters(model).items()} if self._halved else {}
        buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
        settings = engine_settings(params, vector=model.config.hidden_size)
        self.stage = settings["zero_optimization"]["stage"]
        self.engine: Any = deepspeed.initialize(
            model=policy, optimizer=adam, config=settings, dist_init_required=False
        )[0]
        self.adam = adam
        self.state = ShardedState(self.engine, model, adam, self.stage)
        for name, buffer in buffers.items():  # DeepSpeed rounds these too, and positions need all of their digits
            owner, _, key = name.rpartition(".")
            model.get_submodule(owner)._buffers[key] = buffer.to(self.device)
        if weights:
            self.state.set_weights(weights)
        self.reference = None
        if reference is not None:
            self.reference = TreePolicy(reference, params.attention).eval()
            for tensor in [*reference.parameters(), *reference.buffers()]:
                tensor.data = tensor.data.to(self.device)
            if self._halved:
                for tensor in reference.parameters():
                    tensor.data = tensor.data.bfloat16()

    @property
    def _halved(self) -> bool:
        return self.params.dtype == "bfloat16"

    @property
    def device(self) -> torch.device:
        return torch.device(self.engine.device)

    def logprobs(self, batch: TreeBatch, temperature: float, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        self.engine.train(torch.is_grad_enabled())
        return self.engine(batch, temperature, entropy)

    def reference_logprobs(self, batch: TreeBatch, temperature: float) -> Tensor:
        if self.reference is None and has_adapter(self.model):
            with torch.no_grad(), adapter_off(self.model):
                return self.logprobs(batch, temperature)[0]
        return without_gradient(self.reference, batch, temperature)

    @torch.no_grad()
    def hidden(self, batch: TreeBatch) -> Tensor:
        self.engine.eval()
        return self.engine(batch, 1.0, states=True)[0]

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self.ranks)  # DeepSpeed takes the mean over ranks; stage 3 knows no sum

    def step(self, learning_rate: float) -> float:
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        if self.stage == 0:  # DeepSpeed would not tell the norm here, and would update even if it is not finite
            norm = float(torch.nn.utils.clip_grad_norm_(self.engine.module.parameters(), self.params.max_grad_norm))
            if not math.isfinite(norm):
                self.engine.zero_grad()
                return norm
        self.engine.step()
        if self.stage:
            norm = float(self.engine.get_global_grad_norm())
            norm = norm if norm >= 0 else math.inf  # -1 stands for not finite
        return norm

    def restart(self) -> None:
        self.state.set_weights(self.first)
        forget(self.adam)

    def total(self, values: Tensor) -> Tensor:
        values = values.clone()
        torch.distributed.all_reduce(values)
        return values

    def save_optimizer(self, path: Path) -> None:
        self.state.save_optimizer(path)

    def load_optimizer(self, path: Path) -> None:
        self.state.load_optimizer(path)

    def save_weights(self, path: Path) -> None:
        """Write the float32 weights under the names of Hugging Face; rank 0 writes, all ranks call."""
        self.state.save_weights(path)

    def load_weights(self, path: Path) -> None:
        """Read what ``save_weights`` wrote. Raises RunError where names or shapes do not fit the policy."""
        self.state.load_weights(path)


def engine_settings(params: LearnParams, vector: int) -> dict[str, Any]:
    """DeepSpeed's configuration. ``vector``: parameters of at most that many numbers stay whole on every rank."""
    backend = params.backend
    assert backend.type == "deepspeed"
    halved = params.dtype == "bfloat16"
    stage = params.zero_stage
    zero: dict[str, Any] = {"stage": stage, "stage3_param_persistence_threshold": vector}
    if backend.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,  # the trainer weighs tokens itself
        "gradient_accumulation_steps": 1,  # and says which backward is the last
        "gradient_clipping": params.max_grad_norm if stage else 0.0,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW needs no compiler and has the same state everywhere
        "bf16": {"enabled": halved},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 2**31,
    }
