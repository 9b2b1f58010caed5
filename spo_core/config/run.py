"""``params/run.yaml``: how long a training goes on, where it computes, and which trackers log it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from spo_core.config.cluster import LocalRunner, TaskRunnerParams
from spo_core.config.custom import OURS, CustomParams
from spo_core.config.namespace import Namespace

if TYPE_CHECKING:
    TrackerName = str
else:
    TrackerName = Literal[
        (*(key.removeprefix("run.trackers.") for key in OURS if key.startswith("run.trackers.")), "none")
    ]
TrackerParams = Annotated[
    Annotated[TrackerName, Tag("name")] | Annotated[CustomParams, Tag("custom")],
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
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """Name of the working directory ``work/train-<name>``; by default a fingerprint of all that decides the weights."""
    seed: int = Field(default=0, ge=0)
    """Every random number of training and evaluation is derived from it."""
    iterations: int = Field(default=40, ge=1)
    """Iterations of rollout, advantage, train."""
    max_generated_tokens: int | None = Field(default=None, ge=1)
    """Stop after the iteration in which this many tokens were sampled in all; for comparisons at one budget."""
    max_seconds: float | None = Field(default=None, gt=0)
    """Begin no iteration that, as long as the last one, would end after this many seconds of work, in all starts of the
    run together."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many validations in a row that were no better than the best before; null: go on."""
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
    """Where rollouts are sampled and cells are evaluated: in the flow's process, or mapped over a cluster."""
    trackers: tuple[TrackerParams, ...] = ("wandb",)
    """Trackers that log each iteration's metrics, several at once: ``wandb``, ``tensorboard``, ``none``, or a class of
    the project's own. A single one need not be a list."""
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
