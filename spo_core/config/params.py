"""All params of a pipeline in one model."""

from __future__ import annotations

from pydantic import model_validator

from spo_core.config.credit import CUT_TYPES, BestOfKProgress, CreditParams, MonteCarlo, Rejection
from spo_core.config.data import DataParams
from spo_core.config.evaluate import EvaluateParams
from spo_core.config.learn import LearnParams
from spo_core.config.namespace import Namespace
from spo_core.config.offline import SEQUENCE_LOSSES
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
        if self.rollout.first_children is not None and depth == 1:
            raise ValueError(
                f"rollout.first_children is for trees, and rollout.branch_factors {list(self.rollout.branch_factors)} "
                "asks for whole responses: set it to null"
            )
        if self.rollout.first_children is not None and value in ("monte_carlo", "adaptive_monte_carlo"):
            raise ValueError(
                f"rollout.first_children ends subtrees by their rewards, and credit.value {value} samples further "
                "ones: set it to null, or credit.value to tree_mean or none"
            )
        if partition == "entropy" and self.rollout.engine.type == "vllm":
            raise ValueError("credit.partition entropy needs entropies, which rollout.engine vllm does not give")
        rollouts = value in ("monte_carlo", "adaptive_monte_carlo")
        if (partition in CUT_TYPES) != rollouts and value not in ("custom", "critic", "gold_answer"):
            raise ValueError(
                f"credit.partition {partition} and credit.value {value} do not go together: a response that is cut "
                "(cutpoints, equal_parts, delimiter, entropy) is valued by monte_carlo, adaptive_monte_carlo, critic, "
                "gold_answer or custom"
            )
        if value == "none" and advantage in ("difference", "best_of_k_progress", "gae"):
            raise ValueError(
                f"credit.advantage {advantage} needs values: credit.value tree_mean, monte_carlo, critic or gold_answer"
            )
        if credit.advantage.type == "gae" and credit.advantage.over == "tokens":
            if value != "critic":
                raise ValueError(
                    f"credit.advantage gae over tokens needs credit.value critic, not {value}, which values the ends "
                    "of segments alone; or set credit.advantage.over to segments"
                )
            if partition in CUT_TYPES:
                raise ValueError(
                    f"credit.advantage gae over tokens makes nothing of the cuts of credit.partition {partition}: "
                    "choose whole or fixed_tokens, or credit.advantage.over segments"
                )
        if value in ("critic", "gold_answer"):
            self._check_used()
        if value == "critic":
            self._consistent_critic()
        if partition in CUT_TYPES and advantage in ("leave_one_out", "group_normalized"):
            raise ValueError(f"credit.advantage {advantage} compares siblings; a response that is cut has none")
        if isinstance(credit.advantage, Rejection):
            self._check_rejection(credit.advantage)
        if isinstance(credit.value, MonteCarlo) and credit.value.prover is not None:
            self._check_prover()
        reach, shares = self.reward_range, self.rewards_are_shares
        of_value = value in ("adaptive_monte_carlo", "gold_answer")
        if (of_value or advantage == "best_of_k_progress") and not shares:
            there = "a custom one may be anything" if reach is None else f"they reach from {reach[0]:g} to {reach[1]:g}"
            raise ValueError(
                f"credit.{'value' if of_value else 'advantage'} takes rewards for "
                f"probabilities, so verify.rewards and verify.reward must lie in 0..1; {there}"
            )
        if advantage == "best_of_k_progress" and credit.value.type == "critic" and credit.value.loss == "squared":
            raise ValueError(
                "credit.advantage best_of_k_progress takes values for probabilities, and those of credit.value.loss "
                "squared may be anything; set it to auto or cross_entropy"
            )
        self._check_resample()
        if self.learn.loss.type in SEQUENCE_LOSSES:
            self._check_sequences()
        if value == "none" and depth != 1:
            raise ValueError(f"credit.value none needs whole responses; rollout.branch_factors has {depth} depths")

    @property
    def reward_range(self) -> tuple[float, float] | None:
        """The smallest and largest reward that a response can get, whichever set of a mixture it answers; None where a
        function of the project's own decides."""
        own = self.verify.grader
        return self.verify.reward_range({part.grader or own for part in self.data.mixture} or {own})

    @property
    def rewards_are_shares(self) -> bool:
        """Whether every reward lies in 0..1, so that it may be taken for a probability."""
        reach = self.reward_range
        return reach is not None and reach[0] >= 0 and reach[1] <= 1

    def _check_resample(self) -> None:
        """Raise ValueError where trees of one reward, which resampling drops, have credit."""
        value, advantage = self.credit.value.type, self.credit.advantage
        bare = isinstance(advantage, BestOfKProgress) and advantage.own == "reward" and advantage.baseline == "none"
        there = (
            f"credit.advantage {advantage.type}"
            if advantage.type in ("rejection", "custom") or bare
            else f"credit.value {value}"
            if value in ("critic", "gold_answer", "custom")
            else "learn.loss dvo"
            if self.learn.loss.type == "dvo"
            else None
        )
        if self.rollout.resample is not None and there:
            raise ValueError(
                f"rollout.resample drops questions whose responses all have one reward, and {there} learns from these "
                "too: set rollout.resample to null"
            )

    def _check_prover(self) -> None:
        advantage = self.credit.advantage
        engine = self.rollout.engine
        if engine.type == "vllm" and engine.servers is None:
            raise ValueError(
                "credit.value.prover: rollout.engine vllm in the flow's process serves one policy alone; set "
                "rollout.engine.servers (the prover gets as many), or choose the transformers engine, or prover null"
            )
        if isinstance(advantage, BestOfKProgress) and advantage.own == "value":
            raise ValueError(
                "credit.advantage.own value would be that of credit.value.prover, not the policy's own; choose reward"
            )

    def _check_rejection(self, rejection: Rejection) -> None:
        reach = self.reward_range
        if self.credit.partition.type in CUT_TYPES:
            raise ValueError(
                "credit.advantage rejection keeps whole responses, so value rollouts of a response that is cut are of "
                "no use; choose credit.partition whole or fixed_tokens"
            )
        if reach is not None and rejection.threshold > reach[1]:
            raise ValueError(
                f"credit.advantage.threshold {rejection.threshold:g} exceeds the largest reward, {reach[1]:g} "
                "(verify.rewards, verify.reward): no response would be kept"
            )
        if self.learn.whitening != "none":
            raise ValueError("credit.advantage rejection: learn.whitening makes equal advantages 0; choose none")

    def _check_sequences(self) -> None:
        credit, loss = self.credit, self.learn.loss.type
        if credit.partition.type in CUT_TYPES:
            raise ValueError(
                f"learn.loss {loss} is of whole sequences, and credit.partition {credit.partition.type} gives parts of "
                "a response credit of their own; choose whole or fixed_tokens"
            )
        if credit.mask.type != "all":
            raise ValueError(f"learn.loss {loss} is of whole sequences, so credit.mask must be all")
        if credit.advantage.type == "gae" and credit.advantage.over == "tokens":
            raise ValueError(f"learn.loss {loss} is of whole sequences, so credit.advantage.over must be segments")
        reach = self.reward_range if credit.value.type in ("none", "tree_mean") else None
        if self.learn.loss.type == "dpo_positive" and reach and self.learn.loss.margin > reach[1] - reach[0]:
            raise ValueError(
                f"learn.loss.margin {self.learn.loss.margin:g} exceeds the range of rewards, {reach[0]:g} to "
                f"{reach[1]:g}: no two responses would be a pair"
            )
        if loss == "dpo_positive" and max(self.rollout.branch_factors) == 1:
            raise ValueError(
                "learn.loss dpo_positive compares siblings, and rollout.branch_factors "
                f"{list(self.rollout.branch_factors)} has single responses alone; sample two or more"
            )

    def _check_used(self) -> None:
        """Raise ValueError where an advantage has no use for values of the states within a response."""
        compares = ("leave_one_out", "group_normalized") if len(self.rollout.branch_factors) == 1 else ()
        if self.credit.advantage.type in (*compares, "rejection"):
            raise ValueError(
                f"credit.advantage {self.credit.advantage.type} of whole responses compares rewards and no value, so "
                f"credit.value {self.credit.value.type} would be computed for nothing: choose credit.value none, or "
                "credit.advantage gae"
            )

    def _consistent_critic(self) -> None:
        critic = self.credit.value
        assert critic.type == "critic"
        if critic.network == "copy" and self.policy.lora is not None:
            raise ValueError(
                "credit.value.network copy trains a second policy's whole weights, which policy.lora is to spare; "
                "set it to head, or policy.lora to null"
            )
        if critic.loss == "cross_entropy" and not self.rewards_are_shares:
            raise ValueError(
                "credit.value.loss cross_entropy takes returns for probabilities, so verify.rewards and verify.reward "
                "must lie in 0..1; set it to auto or squared"
            )
        if self.run.iterations <= critic.warmup_iterations:
            raise ValueError(
                f"run.iterations {self.run.iterations} ends before the policy is trained: the first "
                f"{critic.warmup_iterations} train the critic alone (credit.value.warmup_iterations)"
            )
