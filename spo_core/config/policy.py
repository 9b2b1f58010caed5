"""``params/policy.yaml``: the policy that training begins with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from spo_core.config.namespace import Namespace


class ScratchPolicy(Namespace):
    """A randomly initialised Llama with its own tokenizer."""

    type: Literal["scratch"]
    tokenizer: Literal["characters", "bytes"]
    """Tokens of the policy. ``characters``: those of the problem set; ``bytes``: byte-level, for any text."""
    hidden_size: int = Field(ge=8)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    intermediate_size: int = Field(ge=8)
    max_positions: int = Field(ge=8)
    """Longest prompt plus completion the architecture is declared for, in tokens."""

    @model_validator(mode="after")
    def _divisible(self) -> ScratchPolicy:
        if self.hidden_size % (2 * self.heads):
            raise ValueError("hidden_size must be a multiple of twice heads (rotary positions)")
        return self


class PolicyShape(Namespace):
    """Architecture of a Llama-like policy."""

    layers: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    vocabulary: int = Field(ge=1)
    tied: bool = False
    """Whether embedding and head share weights."""
    attention_bias: bool = False
    """Whether query, key and value projections have a bias, as in Qwen2."""


class PretrainedPolicy(Namespace):
    """A policy in Hugging Face format: a local folder or a hub id."""

    type: Literal["pretrained"]
    path: str
    """Folder or hub id."""
    revision: str | None = None
    """Revision of a hub id."""
    shape: PolicyShape | None = None
    """Shape to estimate with where the policy's own config.json is not at hand."""


class WarmupParams(Namespace):
    """Supervised warm-up on the problem set's demonstrations, from which reinforcement learning starts."""

    steps: int = Field(ge=0)
    """Optimizer steps; 0 saves the policy as it is."""
    batch_size: int = Field(default=64, ge=1)
    """Demonstrations in an optimizer step."""
    matrix_learning_rate: float = Field(default=0.02, gt=0)
    """Peak learning rate of Muon, which updates the weight matrices inside the layers."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """Peak learning rate of AdamW, which updates embeddings, norms and head."""


class LoraParams(Namespace):
    """Training of low-rank adapters beside frozen weights (LoRA, arXiv 2106.09685); needs the extra ``lora``."""

    rank: int = Field(default=32, ge=1)
    """Rank r of an adapter B A."""
    alpha: int = Field(default=64, ge=1)
    """Adapters are multiplied by alpha / rank."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Linear layers that get one: all but the output layer, or those of these names, as [q_proj, v_proj]."""

    @model_validator(mode="after")
    def _some(self) -> LoraParams:
        if not self.targets:
            raise ValueError("targets: name a linear layer, or write all-linear")
        return self


class PolicyParams(Namespace):
    seed: int = Field(default=0, ge=0)
    """Seed of the initial weights and of the warm-up batches."""
    init: Annotated[ScratchPolicy | PretrainedPolicy, Field(discriminator="type")]
    warmup: WarmupParams
    lora: LoraParams | None = None
    """Train adapters alone, from the policy that the warm-up made; null: all weights. The warm-up trains all."""

    @property
    def first(self) -> PolicyParams:
        """All that decides the first policy."""
        return self.model_copy(update={"lora": None})
