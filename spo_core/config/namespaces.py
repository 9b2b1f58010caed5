"""``params/{run,policy,rollout}.yaml``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from spo_core.config.base import Namespace
from spo_core.config.cluster import LocalRunner, TaskRunnerParams
from spo_core.config.custom import CustomParams
from spo_core.config.engine import EngineParams, TransformersEngineParams

TrackerParams = Annotated[
    Annotated[Literal["wandb", "tensorboard", "none"], Tag("name")] | Annotated[CustomParams, Tag("custom")],
    Discriminator(lambda chosen: "name" if isinstance(chosen, str) else "custom"),
]


class WandbParams(Namespace):
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """``auto``: online where a key is found, offline otherwise."""
    project: str = "spo"
    """W&B project."""
    trees_every: int | None = Field(default=10, ge=1)
    """Iterations between tables of sampled trees; null: none."""
    trees: int = Field(default=2, ge=1)
    """Trees of one table, the iteration's first."""


class RunParams(Namespace):
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the working directory ``work/train-<name>``; by default a fingerprint of all that decides the weights."""
    seed: int = Field(default=0, ge=0)
    """Every random number of training and evaluation is derived from it."""
    iterations: int = Field(default=40, ge=1)
    """Iterations of rollout, advantage, train."""
    max_generated_tokens: int | None = Field(default=None, ge=1)
    """Stop after the iteration in which this many tokens were sampled in all; for comparisons at one budget."""
    validate_every: int = Field(default=10, ge=1)
    """Iterations between measurements of accuracy on the validation split, one sample a question."""
    checkpoint_every: int = Field(default=10, ge=1)
    """Iterations between resumable checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """The newest resumable checkpoints kept in the working directory."""
    keep_rollouts: int | None = Field(default=50, ge=1)
    """Newest iterations whose trees and credits stay in the working directory, beside those at which a checkpoint
    stands; null: all. A run that only samples keeps all of them, which are what it is for."""
    milestone_every: int | None = Field(default=None, ge=1)
    """Iterations between milestones: checkpoints that are kept for good, and whose policies DVC versions while the run
    goes on; null: none."""
    threads: int = Field(default=2, ge=1)
    """CPU threads of torch. Results are bit-identical only for the same number."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:(0|[1-9][0-9]*))?)$")
    """``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:1``: what warm-up, backend torch and engine
    transformers compute on. DeepSpeed's ranks and vLLM have devices of their own; the flow's copy of the policy is then
    on the CPU."""
    gpu_limit: str | None = Field(default="gpu", min_length=1)
    """Prefect's global concurrency limit of which training and every evaluated cell hold one slot, so that they take
    turns on the GPU; nothing is held where the server has no such limit, or for null."""
    task_runner: TaskRunnerParams = LocalRunner(type="local")
    """Where rollouts are sampled and cells evaluated: in the flow's process, or mapped over a cluster."""
    trackers: tuple[TrackerParams, ...] = ("wandb",)
    """Who is told each iteration's metrics, several at once: ``wandb``, ``tensorboard``, ``none``, or a class of the
    project's own. A single one need not be a list."""
    wandb: WandbParams = WandbParams()
    """Settings of tracker ``wandb``; its tables of trees apply to every tracker."""

    @field_validator("trackers", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        single = isinstance(value, str | dict | CustomParams)
        return (value,) if single else tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _once(self) -> RunParams:
        names = [chosen for chosen in self.trackers if isinstance(chosen, str)]
        if len(names) != len(set(names)):
            raise ValueError(f"trackers: each once, not {', '.join(names)}")
        return self


class ScratchPolicy(Namespace):
    """A randomly initialised Llama with its own tokenizer."""

    type: Literal["scratch"]
    tokenizer: Literal["characters", "bytes"]
    """``characters``: those of the problem set; ``bytes``: byte-level, any text."""
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


class PolicyParams(Namespace):
    seed: int = Field(default=0, ge=0)
    """Seed of the initial weights and of the warm-up batches."""
    init: Annotated[ScratchPolicy | PretrainedPolicy, Field(discriminator="type")]
    warmup: WarmupParams


class ContextStage(Namespace):
    """A context length that holds from an iteration on."""

    from_iteration: int = Field(ge=2)
    """First iteration with it."""
    context_length: int = Field(ge=2)
    """Tokens of prompt and completion together."""
    restart_learning_rate: bool = False
    """Begin the learning rate's warm-up and decay anew, as a new run from the same weights would."""


class RolloutParams(Namespace):
    engine: EngineParams = TransformersEngineParams(type="transformers")
    questions: int = Field(ge=1)
    """Questions in an iteration, drawn without replacement until the split is used up."""
    branch_factors: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    """Children of a node, by the node's depth; one number is the number of whole responses a question."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides the logits wherever the policy is sampled or its log-probs are computed in training."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of sampling. Log-probs are of the full distribution (as in the reference implementation)."""
    context_length: int = Field(ge=2)
    """Tokens of prompt and completion together."""
    context_schedule: tuple[ContextStage, ...] = ()
    """Later context lengths, as 2K at first and 4K from iteration 400 on."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """Tokens of one completion; null: as the context allows."""
    truncated: Literal["zero", "grade"] = "zero"
    """A response cut off by a limit: reward 0 for every algorithm, or graded as it is (reference GRPO and tree)."""
    max_concurrency: int = Field(default=256, ge=1)
    """Requests decoded at once, by every replica of the engine."""

    @model_validator(mode="after")
    def _rising(self) -> RolloutParams:
        starts = [stage.from_iteration for stage in self.context_schedule]
        if starts != sorted(set(starts)):
            raise ValueError(f"context_schedule: from_iteration must rise from stage to stage, not {starts}")
        return self

    def context_at(self, iteration: int) -> int:
        """Context length of an iteration (counted from 1)."""
        return (
            [self.context_length] + [s.context_length for s in self.context_schedule if s.from_iteration <= iteration]
        )[-1]

    @property
    def longest_context(self) -> int:
        """The longest context length of all iterations, in tokens."""
        return max([self.context_length, *(stage.context_length for stage in self.context_schedule)])

    @property
    def shortest_context(self) -> int:
        """The shortest context length of all iterations, in tokens."""
        return min([self.context_length, *(stage.context_length for stage in self.context_schedule)])
