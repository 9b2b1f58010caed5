"""Log-probs of all trained tokens of trees, each shared prefix forwarded once.

The result equals one padded sequence per segment in value and gradient; tests/learn holds it to that.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from spo_core.learn.tree_attention import NAME, attention_arguments
from spo_core.learn.tree_batch import TreeBatch

LOGITS = 2**26  # of one chunk of trained positions; 256 MB in float32


class TreePolicy(nn.Module):
    """A causal model that maps a TreeBatch to the log-probs of its trained tokens.

    ``attention``: levels, flex, dense (see tree_attention) or auto: flex on GPUs, levels elsewhere. The model's
    attention is switched for good; without a tree it behaves as before.
    """

    def __init__(self, model: PreTrainedModel, attention: str = "auto", *, checkpointing: bool = False) -> None:
        super().__init__()
        self.model, self.attention = model, attention
        model.set_attn_implementation(NAME)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def forward(self, batch: TreeBatch, temperature: float, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """Log-probs under logits / temperature and, where asked for, entropies in nats; float32 [trained tokens].

        Those of ``batch.measured`` follow the log-probs, without gradient; they do not change it by a bit.
        """
        if not batch.forwarded_tokens:
            nothing = torch.zeros(0, device=batch.input_ids.device)
            return nothing, nothing if entropy else None
        kind = self.attention
        if kind == "auto":
            kind = "flex" if batch.input_ids.is_cuda else "levels"
        hidden = self.model.base_model(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            use_cache=False,
            **attention_arguments(batch, kind),
        ).last_hidden_state[0]
        head = self.model.get_output_embeddings()
        rows = max(1, LOGITS // self.model.config.vocab_size)
        parts = zip(batch.sources.split(rows), batch.targets.split(rows), strict=True)
        if len(batch.sources) <= rows:
            results = [_project(head, hidden[s], t, temperature, entropy) for s, t in parts]
        else:  # logits of a chunk live only while it is computed, in both directions
            results = [
                checkpoint(_project, head, hidden[s], t, temperature, entropy, use_reentrant=False) for s, t in parts
            ]
        logprobs = torch.cat([part for part, _ in results])
        if batch.measured is not None:
            with torch.no_grad():
                extra = zip(batch.measured.sources.split(rows), batch.measured.targets.split(rows), strict=True)
                measured = [_project(head, hidden[s], t, temperature, False)[0] for s, t in extra]
            logprobs = torch.cat([logprobs, *measured])
        return logprobs, torch.cat([part for _, part in results if part is not None]) if entropy else None


def _project(
    head: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    logits = head(hidden).float() / temperature  # (trained tokens, vocabulary)
    total = logits.logsumexp(-1)
    entropies = None
    if entropy:
        with torch.no_grad():
            entropies = total - ((logits - total[:, None]).exp() * logits).sum(-1)
    return logits.gather(-1, targets[:, None])[:, 0] - total, entropies
