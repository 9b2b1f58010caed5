"""All params of a pipeline in one model."""

from __future__ import annotations

from pydantic import model_validator

from spo_core.config.credit import CUT_TYPES, CreditParams
from spo_core.config.data import DataParams
from spo_core.config.evaluate import EvaluateParams
from spo_core.config.learn import LearnParams
from spo_core.config.namespace import Namespace
from spo_core.config.policy import PolicyParams
from spo_core.config.rollout import RolloutParams
from spo_core.config.run import RunParams
from spo_core.config.verify import VerifyParams


class Params(Namespace):
    """All params of a pipeline, resolved; also the schema of the flows' parameters."""

    run: RunParams
    data: DataParams
    policy: PolicyParams
    rollout: RolloutParams
    verify: VerifyParams
    credit: CreditParams
    learn: LearnParams
    evaluate: EvaluateParams

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        self._consistent_credit()
        if self.policy.init.type == "scratch" and self.rollout.longest_context > self.policy.init.max_positions:
            raise ValueError(
                f"rollout.context_length {self.rollout.longest_context} exceeds policy.init.max_positions "
                f"{self.policy.init.max_positions}"
            )
        if self.learn.optimizer_steps > self.rollout.questions:
            raise ValueError(
                f"learn.optimizer_steps {self.learn.optimizer_steps} exceeds rollout.questions {self.rollout.questions}"
            )
        return self

    def _consistent_credit(self) -> None:
        credit, depth = self.credit, len(self.rollout.branch_factors)
        partition, value, advantage = credit.partition.type, credit.value.type, credit.advantage.type
        if partition != "fixed_tokens" and depth != 1:
            raise ValueError(
                f"rollout.branch_factors has {depth} depths, but credit.partition.type {partition} takes one"
            )
        if partition == "entropy" and self.rollout.engine.type == "vllm":
            raise ValueError("credit.partition entropy needs entropies, which rollout.engine vllm does not give")
        rollouts = value in ("monte_carlo", "adaptive_monte_carlo")
        if (partition in CUT_TYPES) != rollouts and value != "custom":
            raise ValueError(
                f"credit.partition {partition} and credit.value {value} do not go together: a response that is cut "
                "(cutpoints, equal_parts, delimiter, entropy) is valued by monte_carlo, adaptive_monte_carlo or custom"
            )
        if value == "none" and advantage in ("difference", "best_of_k_progress"):
            raise ValueError(f"credit.advantage {advantage} needs values: credit.value tree_mean or monte_carlo")
        if partition in CUT_TYPES and advantage in ("leave_one_out", "group_normalized"):
            raise ValueError(f"credit.advantage {advantage} compares siblings; a response that is cut has none")
        if value == "adaptive_monte_carlo" or advantage == "best_of_k_progress":
            reach = self.verify.reward_range()
            if reach is None or not 0 <= reach[0] <= reach[1] <= 1:
                there = (
                    "a custom one may be anything" if reach is None else f"they reach from {reach[0]:g} to {reach[1]:g}"
                )
                raise ValueError(
                    f"credit.{'value' if value == 'adaptive_monte_carlo' else 'advantage'} takes rewards for "
                    f"probabilities, so verify.rewards and verify.reward must lie in 0..1; {there}"
                )
        if value == "none" and depth != 1:
            raise ValueError(f"credit.value none needs whole responses; rollout.branch_factors has {depth} depths")
