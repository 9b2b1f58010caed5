"""The state that a training run holds in memory between tasks: policy, trainer, sampler, questions, trees under way.

Tasks exchange paths and small records; models and trees stay here. A task names its session by the run's directory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spo_core.config import Params
from spo_core.credit import Credit
from spo_core.credit.pairs import CreditedTree
from spo_core.learn.backend import TrainerHandle
from spo_core.learn.critic import CriticHandle
from spo_core.learn.gold_answer import AnswerValues
from spo_core.learn.replay import ReplayBuffer
from spo_core.problems.base import ProblemSet, Question
from spo_core.runs.directory import RunDirectory, is_milestone
from spo_core.system.progress import Progress
from spo_core.train.identity import NO_LIMIT
from spo_core.train.questions import MixedOrder, QuestionOrder
from spo_core.train.recorded import Recorded
from spo_core.train.sampling import RolloutWorker, Sampled
from spo_core.train.shards import Shards
from spo_core.tree import RolloutTree


@dataclass(frozen=True, slots=True)
class Best:
    """The policy with the highest validation accuracy so far, the first among equals; see ``RunDirectory.best``."""

    iteration: int
    """Iteration after which the accuracy was measured."""
    accuracy: float
    """Validation accuracy, between 0 and 1."""


@dataclass(slots=True)
class UnderWay:
    """Results of an iteration's steps so far; the steps also write them into the iteration's folder."""

    trees: list[RolloutTree]
    credits: list[Credit] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def pairs(self) -> list[CreditedTree]:
        """The trees with their credit, once both are there."""
        return list(zip(self.trees, self.credits, strict=True))


@dataclass(slots=True)
class Session:
    """A training run under way. ``iteration`` is the last finished one; ``best`` is None until one is validated."""

    params: Params
    run: RunDirectory
    problem: ProblemSet
    rows: list[Question]
    validation: list[Question]
    model: Any
    """The policy with float32 weights, which are the ones saved and handed over."""
    working: Any
    """The policy that this process samples from and computes with: ``model`` or a rounded copy of it."""
    tokenizer: Any
    rollouts: RolloutWorker | Shards
    """What samples and grades: this process, or workers that each take a shard of the questions."""
    trainer: TrainerHandle
    replay: ReplayBuffer
    order: QuestionOrder | MixedOrder
    critic: CriticHandle | None = None
    """Values states where ``credit.value`` is critic."""
    answers: AnswerValues | None = None
    """Values states where ``credit.value`` is gold_answer."""
    iteration: int = 0
    generated_tokens: int = 0
    best: Best | None = None
    recorded: Recorded | None = None
    max_logprob_gap: float = NO_LIMIT
    """The limit of ``gap.gap_limit``; none where a replay's trees are of another policy."""
    under_way: UnderWay | None = None
    unraised: int = 0
    """Validations since the best one."""
    seconds: float = 0.0
    """Seconds of work until the last finished iteration, in all starts of the run."""
    last_seconds: float = 0.0
    """Seconds from the end of the iteration before, with what was saved there, to that of the last one's update."""
    clock: float = field(default_factory=time.monotonic)

    @property
    def finished(self) -> bool:
        return self.why_finished is not None

    @property
    def why_finished(self) -> str | None:
        """The limit that the run has reached, in words; None where it goes on. What ended a run can be raised, and the
        run goes on."""
        run = self.params.run
        if self.iteration >= run.iterations:
            return f"run.iterations {run.iterations}"
        if run.max_generated_tokens is not None and self.generated_tokens >= run.max_generated_tokens:
            return f"run.max_generated_tokens {run.max_generated_tokens}: {self.generated_tokens} were generated"
        if run.patience is not None and self.unraised >= run.patience and self.best is not None:
            return f"run.patience {run.patience}: no validation was better than that of iteration {self.best.iteration}"
        if run.max_seconds is not None and self.iteration and self.seconds + self.last_seconds > run.max_seconds:
            return (
                f"run.max_seconds {run.max_seconds:g}: {self.seconds:.0f} s so far, {self.last_seconds:.0f} s the last"
            )
        return None

    def recall(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take time and validations from the metrics of the iterations that are finished."""
        since = max(self.warmup_iterations, 0 if self.best is None else self.best.iteration)
        self.unraised = sum("eval/validation_accuracy" in row and row["iteration"] > since for row in rows)
        times = [0.0, *(row["timing/run"] for row in rows)]
        self.seconds, self.last_seconds = times[-1], times[-1] - times[-2] if rows else 0.0

    def tick(self) -> None:
        """Count the time since the last call, once an iteration, so that whether the run is over does not change while
        the iteration is saved."""
        now = time.monotonic()
        self.last_seconds, self.clock = now - self.clock, now
        self.seconds += self.last_seconds

    @property
    def warmup_iterations(self) -> int:
        """First iterations, which train a critic and leave the policy as it is."""
        return 0 if self.critic is None else self.critic.params.warmup_iterations

    @property
    def at_milestone(self) -> bool:
        """Whether the last finished iteration is one whose checkpoint is kept for good."""
        return is_milestone(self.iteration, self.params.run.milestone_every)

    @property
    def checkpoint_due(self) -> bool:
        """Whether a checkpoint is due after the last finished iteration."""
        return self.iteration % self.params.run.checkpoint_every == 0 or self.at_milestone or self.finished

    def sample(
        self, rows: Sequence[Question], iteration: int, *, validation: bool = False, progress: Progress | None = None
    ) -> Sampled:
        """Sample and grade one tree a question with the present policy."""
        return self.rollouts.sample(
            rows, iteration=iteration, version=self.trainer.step, validation=validation, progress=progress
        )
