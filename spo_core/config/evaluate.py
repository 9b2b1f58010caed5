"""``params/evaluate.yaml``: the suite a policy is judged by, and what runs it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from spo_core.config.engine import EngineParams, TransformersEngineParams
from spo_core.config.namespace import Namespace

ContextName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
SetName = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]


class NightlyParams(Namespace):
    """Settings of the scheduled evaluation of the newest checkpoint (``flows/nightly.py``)."""

    max_late_hours: float = Field(default=6.0, gt=0)
    """A run that starts later than this after its scheduled time drops itself."""
    wait_seconds: float = Field(default=600.0, gt=0)
    """Seconds that a cell waits for a slot of ``run.gpu_limit`` before the night's evaluation is given up."""
    standard_errors: float = Field(default=2.0, gt=0)
    """Number of paired standard errors by which a score must fall to be an event."""


class EvaluateParams(Namespace):
    """Problem sets × contexts, sampled alike. Named suites are files of ``params/suites``."""

    suite: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Name of the suite: one of ``params/suites``, or that of ``params/evaluate.yaml`` itself."""
    problem_sets: tuple[SetName, ...] | None = Field(default=None, min_length=1)
    """Problem sets whose test splits are asked; null: that of ``data.problem_set``."""
    sources: dict[SetName, str] = Field(default_factory=dict)
    """Folder with the files of a problem set other than ``data.problem_set``; one without comes from the hub."""
    template: str | None = None
    """Prompt template; null: that of training."""
    contexts: dict[ContextName, Annotated[int, Field(ge=1)]] = Field(min_length=1)
    """Name and length of each context: the most tokens a completion may have there."""
    samples: int = Field(default=4, ge=1)
    """Completions sampled for each question."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; leave it at the training temperature unless there is a reason."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of sampling."""
    seed: int = Field(default=0, ge=0)
    """Seed of sampling, and of the bootstrap intervals."""
    questions: int | None = Field(default=None, ge=1)
    """Questions of each test split that are asked, from its beginning; null: all."""
    engine: EngineParams = TransformersEngineParams(type="transformers")
    """``transformers``: lighteval's own backend, on the CPU. ``vllm``: servers of this environment that lighteval asks;
    ``servers`` null is one."""
    batch_size: int = Field(default=256, ge=1)
    """Completions decoded at once, by every server."""
    nightly: NightlyParams = NightlyParams()
