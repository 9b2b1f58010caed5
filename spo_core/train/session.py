"""The state that a training run holds in memory between tasks: policy, trainer, sampler, questions, trees under way.

Tasks exchange paths and small records; models and trees stay here. A task names its session by the run's directory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spo_core.config import Params
from spo_core.credit import Credit
from spo_core.credit.pairs import CreditedTree
from spo_core.learn.backend import TrainerHandle
from spo_core.learn.critic import Critic
from spo_core.learn.replay import ReplayBuffer
from spo_core.problems.base import ProblemSet, Question
from spo_core.runs.directory import RunDirectory, is_milestone
from spo_core.system.progress import Progress
from spo_core.train.identity import NO_LIMIT
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
    critic: Critic | None = None
    """Values states where ``credit.value`` is critic."""
    iteration: int = 0
    generated_tokens: int = 0
    best: Best | None = None
    recorded: Recorded | None = None
    max_logprob_gap: float = NO_LIMIT
    """The limit of ``gap.gap_limit``; none where a replay's trees are of another policy."""
    under_way: UnderWay | None = None

    @property
    def finished(self) -> bool:
        budget = self.params.run.max_generated_tokens
        return self.iteration >= self.params.run.iterations or (budget is not None and self.generated_tokens >= budget)

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
