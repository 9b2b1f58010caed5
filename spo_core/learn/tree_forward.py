"""Log-probs of all trained tokens of trees, each shared prefix forwarded once.

The result equals one padded sequence per segment in value and gradient; tests/learn holds it to that.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spo_core.learn.head import Head, trunk
from spo_core.learn.tree_attention import TreeLayout
from spo_core.learn.tree_batch import TreeBatch, taken
from spo_core.policy.attention import NAME, laid_out


class TreePolicy(nn.Module):
    """A causal model that maps a TreeBatch to the log-probs of its trained tokens.

    ``attention``: rows, flex (see tree_attention) or auto: flex on GPUs, rows elsewhere. The model's
    attention is switched for good; without a tree it behaves as before.
    """

    def __init__(self, model: PreTrainedModel, attention: str = "auto", *, checkpointing: bool = False) -> None:
        super().__init__()
        self.model, self.attention = model, attention
        self.head = Head(model)
        model.set_attn_implementation(NAME)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def forward(
        self, batch: TreeBatch, temperature: float, entropy: bool = False, *, states: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probs under logits / temperature and, where asked for, entropies in nats; float32 [trained tokens].

        Log-probs of ``batch.measured`` follow those of the trained tokens, without gradient, and change none of them.
        ``states`` gives what ``hidden`` does in their place: DeepSpeed's engine has this one way in.
        """
        if states:
            return self.hidden(batch), None
        if not batch.forwarded_tokens:
            nothing = torch.zeros(0, device=batch.input_ids.device)
            return nothing, nothing if entropy else None
        hidden, measured = self.hidden(batch), None
        if batch.measured is not None:
            measured = hidden.detach()[batch.measured.sources], batch.measured.targets
        return self.head(taken(hidden, batch.sources), batch.targets, temperature, entropy, measured)

    def hidden(self, batch: TreeBatch) -> Tensor:
        """Last hidden states of a packed row; (tokens, hidden size)."""
        kind = self.attention
        if kind == "auto":
            kind = "flex" if batch.input_ids.is_cuda else "rows"
        with laid_out(TreeLayout(batch, kind)):
            output = trunk(self.model)(
                input_ids=batch.input_ids[None],
                attention_mask=torch.ones_like(batch.input_ids)[None],
                position_ids=batch.position_ids[None],
                use_cache=False,
            )
        return output.last_hidden_state[0]
