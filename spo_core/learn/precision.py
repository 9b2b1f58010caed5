"""Weights in bfloat16 for computing, beside the float32 ones that the optimizer updates and that are saved.

Most updates are too small for the 8 significant bits of bfloat16: added to rounded weights they would be lost.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spo_core.config import LearnParams


def working_copy(model: PreTrainedModel, params: LearnParams) -> PreTrainedModel:
    """The model that this process computes with: ``model`` itself where it is trained in float32 or by DeepSpeed's
    ranks, else a copy with bfloat16 parameters. Buffers stay float32, as rotary positions need the digits. Weights that
    are bfloat16 already, as the frozen ones beside adapters, are shared with the copy."""
    return model if params.backend.type != "torch" else rounded_copy(model, params)


def rounded_copy(model: PreTrainedModel, params: LearnParams) -> PreTrainedModel:
    """What ``working_copy`` gives without DeepSpeed, whatever trains the policy."""
    if params.dtype == "float32":
        return model
    rounded = {id(p): nn.Parameter(p.detach().bfloat16(), requires_grad=p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, rounded)  # the memo: these count as parameters that are copied already


class MasterWeights:
    """Ties a working copy to the ``model`` with the float32 weights; nothing to do where both are one module.

    Each backward pass leaves its gradient with the model's parameters, summed in float32.
    """

    def __init__(self, model: PreTrainedModel, working: PreTrainedModel) -> None:
        pairs = list(zip(model.parameters(), working.parameters(), strict=True))
        self.pairs = [] if working is model else [pair for pair in pairs if pair[0].requires_grad]
        for master, parameter in self.pairs:
            parameter.register_post_accumulate_grad_hook(_hand_gradient_to(master))

    @torch.no_grad()
    def round(self) -> None:
        """Copy the model's present weights, rounded, to the working copy."""
        for master, parameter in self.pairs:
            parameter.copy_(master)


def _hand_gradient_to(master: Tensor) -> Callable[[Tensor], None]:
    def add(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad.add_(parameter.grad)
        parameter.grad = None

    return add
