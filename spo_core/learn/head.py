"""Log-probs from last hidden states, computed in chunks of positions.

``Head`` runs the model's own forward with its trunk (what computes the last hidden states) replaced by a stub that
returns given ones, so output layer, scaling and softcap are the model's. ZeRO-3 gathers parameters when a module that
holds them is called. Only ``Head`` holds them here, as the modules inside are copies without DeepSpeed's hooks: they
are gathered once in a forward and once in a backward pass, however many chunks this rank has.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from spo_core.config import CHUNK_LOGITS
from spo_core.policy.architecture import refusal


class Head(nn.Module):
    """Maps hidden states (positions, hidden size) and the ids of what follows (positions,) to log-probs."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self._behind = (_bare(model, trunk(model)),)  # in a tuple: no submodule
        self.vocabulary = model.config.get_text_config().vocab_size
        parameters = {id(p): p for p in self._behind[0].parameters()}
        for number, parameter in enumerate(parameters.values()):
            self.register_parameter(f"shared_{number}", parameter)

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor,
        temperature: float,
        entropy: bool,
        measured: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probs under logits / temperature and, where asked for, entropies in nats; float32 [positions].

        ``measured``: further hidden states and targets; their log-probs stand behind the others, without gradient.
        """
        rows = max(1, CHUNK_LOGITS // self.vocabulary)
        parts = zip(hidden.split(rows), targets.split(rows), strict=True)
        if len(targets) <= rows:
            results = [self._project(h, t, temperature, entropy) for h, t in parts]
        else:  # logits of a chunk live only while it is computed, in both directions
            results = [checkpoint(self._project, h, t, temperature, entropy, use_reentrant=False) for h, t in parts]
        logprobs = torch.cat([part for part, _ in results])
        if measured is not None:
            with torch.no_grad():
                extra = zip(*(x.split(rows) for x in measured), strict=True)
                behind = [self._project(h, t, temperature, False)[0] for h, t in extra]
            logprobs = torch.cat([logprobs, *behind])
        return logprobs, torch.cat([part for _, part in results if part is not None]) if entropy else None

    def _project(
        self, hidden: Tensor, targets: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        logits = self._behind[0](inputs_embeds=hidden[None]).logits[0].float() / temperature  # (positions, vocabulary)
        total = logits.logsumexp(-1)
        entropies = None
        if entropy:
            with torch.no_grad():
                entropies = total - ((logits - total[:, None]).exp() * logits).sum(-1)
        return logits.gather(-1, targets[:, None])[:, 0] - total, entropies


def trunk(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a causal model that computes its last hidden states. Raises ConfigError where there is none."""
    found = model.get_decoder()
    if found is model or not isinstance(found, PreTrainedModel):
        found = next((child for child in model.children() if isinstance(child, PreTrainedModel)), model)
    if found is model:
        raise refusal(model, "be trained on trees", "its output layer is not apart from what computes hidden states")
    return found


class _Given(nn.Module):
    """Stands in for a model's trunk: returns the hidden states it is given."""

    def forward(self, *args: Any, inputs_embeds: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        return _Output(last_hidden_state=inputs_embeds)


class _Output(BaseModelOutputWithPast):
    """Has nothing but hidden states, whatever is asked for: no router's logits, no cache."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _bare(module: nn.Module, without: nn.Module) -> Any:
    """A copy of ``module`` with the same parameters and buffers, and a stub for ``without``; it gets no later hooks."""
    if module is without:
        return _Given()
    result = copy.copy(module)
    for name, value in vars(module).items():
        if name.endswith("_hooks") and isinstance(value, dict):
            result.__dict__[name] = value.copy()
    result._modules = {name: child and _bare(child, without) for name, child in module._modules.items()}
    return result
