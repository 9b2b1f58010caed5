"""``params/rollout.yaml``: how many responses are sampled, by what, and how long they may be."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from spo_core.config.engine import EngineParams, TransformersEngineParams
from spo_core.config.namespace import Namespace


class ContextStage(Namespace):
    """A context length that holds from an iteration on."""

    from_iteration: int = Field(ge=2)
    """First iteration with it."""
    context_length: int = Field(ge=2)
    """Tokens of prompt and completion together."""
    restart_learning_rate: bool = False
    """Begin the learning rate's warm-up and decay anew, as a new run from the same weights would."""


class ResampleParams(Namespace):
    """Dynamic sampling (DAPO, arXiv 2503.14476): trees whose responses all have one reward, so that no credit is left
    to assign, give way to those of other questions."""

    max_tokens: int = Field(ge=1)
    """Tokens of an iteration's budget: no further questions are asked where, at the mean of those before, they would
    exceed it. Tokens of trees that give way are counted."""


class SkipSolvedParams(Namespace):
    """Questions that the policy solves are left out for a while."""

    after: int = Field(default=2, ge=1)
    """A question is left out once all of its responses were right this many times in a row."""
    iterations: int = Field(default=50, ge=1)
    """Iterations after which it is asked again; solved again, it is left out for as many more."""


class RolloutParams(Namespace):
    engine: EngineParams = TransformersEngineParams(type="transformers")
    questions: int = Field(ge=1)
    """Questions in an iteration, drawn without replacement until the split is used up."""
    resample: ResampleParams | None = None
    """Ask other questions where responses are all right or all wrong; null: train on what was drawn."""
    skip_solved: SkipSolvedParams | None = None
    """Leave out questions that are solved; null: ask all."""
    branch_factors: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    """Children of a node, by the node's depth; one number is the number of whole responses a question."""
    first_children: int | None = Field(default=None, ge=2)
    """Children that a node of a tree begins with: its others are sampled only where rewards below these differ. Null:
    all children at once."""
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

    @model_validator(mode="after")
    def _fewer_at_first(self) -> RolloutParams:
        if self.first_children is not None and self.first_children >= max(self.branch_factors):
            raise ValueError(
                f"first_children {self.first_children} leaves no child of branch_factors {list(self.branch_factors)} "
                "for later; lower it, or set it to null"
            )
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
