"""The protocol through which the trainer reaches a policy on one device or several ranks, and the one-device form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spo_core.config import LearnParams
from spo_core.credit.pairs import CreditedTree
from spo_core.learn.precision import MasterWeights, working_copy
from spo_core.learn.state import forget, load_optimizer, save_optimizer
from spo_core.learn.tree_batch import TreeBatch
from spo_core.learn.tree_forward import TreePolicy
from spo_core.policy.adapter import adapter_off, has_adapter, trained_parameters
from spo_core.system.progress import Progress


class Backend(Protocol):
    """Ranks that hold one policy together. Every rank makes the same calls, ``backward`` the same number of times."""

    rank: int
    ranks: int

    @property
    def device(self) -> torch.device: ...

    def logprobs(self, batch: TreeBatch, temperature: float, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """Log-probs of the trained policy, and entropies if asked for, as TreePolicy.forward returns them."""
        ...

    def reference_logprobs(self, batch: TreeBatch, temperature: float) -> Tensor:
        """Log-probs of the reference policy, without gradient. Raises ValueError where there is no reference policy."""
        ...

    def hidden(self, batch: TreeBatch) -> Tensor:
        """Last hidden states of the trained policy at every token of the row, without gradient; (tokens, size)."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of ``loss``, summed over calls and ranks; ``last`` marks an optimizer step's last call."""
        ...

    def step(self, learning_rate: float) -> float:
        """Clip the gradient, update the weights, zero the gradient; returns its norm before clipping, over all ranks.
        Where the norm is not finite, the weights stay as they are."""
        ...

    def restart(self) -> None:
        """Go back to the first policy's weights and an optimizer that made no step; needs ``learn.restart``."""
        ...

    def total(self, values: Tensor) -> Tensor:
        """Sum over ranks of a tensor that has the same shape on each."""
        ...

    def save_optimizer(self, path: Path) -> None: ...

    def load_optimizer(self, path: Path) -> None:
        """Read the state that any backend saved; the weights stay those that the model has now."""
        ...


class TrainerHandle(Protocol):
    """A trainer as a run holds it: a Trainer in this process, or a DeepSpeedTrainer whose ranks are other processes.
    Trainer documents its members."""

    @property
    def step(self) -> int: ...

    @property
    def learning_rate(self) -> float: ...

    def restart_learning_rate(self) -> None: ...

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...

    def train_iteration(
        self, pairs: Sequence[CreditedTree], *, iteration: int, progress: Progress | None = None
    ) -> dict[str, float]: ...

    def close(self) -> None:
        """End the processes of the ranks, if there are any."""
        ...


def without_gradient(reference: TreePolicy | None, batch: TreeBatch, temperature: float) -> Tensor:
    """Log-probs of a reference policy. Raises ValueError where there is none."""
    if reference is None:
        raise ValueError("learn.kl and losses of whole sequences need a reference policy")
    with torch.no_grad():
        return reference(batch, temperature)[0]


def first_weights(model: PreTrainedModel, params: LearnParams) -> dict[str, Tensor]:
    """Copies of the weights that ``restart`` goes back to, on the CPU; none where it is never called."""
    return {n: p.detach().to("cpu", copy=True) for n, p in trained_parameters(model).items()} if params.restart else {}


class TorchBackend:
    """A Backend on one device, in plain torch.

    ``model`` has the float32 weights that the optimizer updates. ``working`` computes log-probs and gradients; where it
    is not given, precision.working_copy makes it.
    """

    rank, ranks = 0, 1

    def __init__(
        self,
        model: PreTrainedModel,
        reference: PreTrainedModel | None,
        params: LearnParams,
        working: PreTrainedModel | None = None,
    ) -> None:
        self.model, self.params = model, params
        self.working = working_copy(model, params) if working is None else working
        self.masters = MasterWeights(model, self.working)
        self.first = first_weights(model, params)
        self.policy = TreePolicy(self.working, params.attention, checkpointing=params.gradient_checkpointing)
        self.reference = None
        if reference is not None:
            self.reference = TreePolicy(working_copy(reference, params), params.attention).eval()
        self.optimizer = torch.optim.AdamW(
            trained_parameters(model).values(),
            lr=params.learning_rate,
            betas=params.betas,
            eps=params.epsilon,
            weight_decay=params.weight_decay,
            fused=True,
        )

    @property
    def device(self) -> torch.device:
        return self.model.device

    def logprobs(self, batch: TreeBatch, temperature: float, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        self.working.train(torch.is_grad_enabled())
        return self.policy(batch, temperature, entropy)

    def reference_logprobs(self, batch: TreeBatch, temperature: float) -> Tensor:
        if self.reference is None and has_adapter(self.working):
            with torch.no_grad(), adapter_off(self.working):
                return self.logprobs(batch, temperature)[0]
        return without_gradient(self.reference, batch, temperature)

    @torch.no_grad()
    def hidden(self, batch: TreeBatch) -> Tensor:
        self.working.eval()
        return self.policy.hidden(batch)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.params.max_grad_norm))
        if math.isfinite(norm):
            self.optimizer.step()
            self.masters.round()
        self.optimizer.zero_grad(set_to_none=True)
        self.working.eval()  # the engine shares it, and gradient checkpointing in training mode drops its cache
        return norm

    @torch.no_grad()
    def restart(self) -> None:
        for name, parameter in trained_parameters(self.model).items():
            parameter.copy_(self.first[name])
        self.masters.round()
        forget(self.optimizer)

    def take_gradient(self) -> list[Tensor]:
        """The summed gradient, a tensor for each parameter of ``model`` in order, and zero it; no step is made."""
        found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.model.parameters()]
        self.optimizer.zero_grad(set_to_none=True)
        self.working.eval()
        return found

    def total(self, values: Tensor) -> Tensor:
        return values

    def save_optimizer(self, path: Path) -> None:
        save_optimizer(path, self.model, self.optimizer)

    def load_optimizer(self, path: Path) -> None:
        load_optimizer(path, self.model, self.optimizer)
        self.masters.round()
