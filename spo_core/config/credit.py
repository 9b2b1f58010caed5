"""``params/credit.yaml``: partition x value x advantage x mask."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from spo_core.config.custom import CustomParams, named
from spo_core.config.namespace import Namespace, Share


class FixedTokens(Namespace):
    """SPO-tree: segments are cut while sampling, and every node branches."""

    type: Literal["fixed_tokens"]
    tokens: int = Field(ge=1)
    """Length M of every segment but those of the last depth."""


class Cutpoints(Namespace):
    """SPO-chain: a response is cut before low-probability tokens."""

    type: Literal["cutpoints"]
    prob_threshold: Share = 0.9
    """A token sampled with a lower probability starts a candidate segment."""
    interval: int = Field(default=5, ge=1)
    """Every interval-th candidate is a cutpoint, beginning with the first: counts low-probability tokens."""


class EqualParts(Namespace):
    """The naive partition: a response is cut into parts of nearly equal length."""

    type: Literal["equal_parts"]
    parts: int = Field(ge=1)
    """Parts of a response; longer ones come first. A response of fewer tokens has one part a token."""


class Delimiter(Namespace):
    """VinePPO: a response is cut behind every occurrence of a text, as between steps or lines."""

    type: Literal["delimiter"]
    text: str = Field(default="\n", min_length=1)
    """Text that ends a step."""
    max_cuts: int | None = Field(default=None, ge=1)
    """Most cutpoints of a response, the first ones; null: all."""


class Entropy(Namespace):
    """A response is cut before tokens at which the policy was undecided."""

    type: Literal["entropy"]
    threshold: float = Field(gt=0)
    """A token sampled from a distribution of higher entropy, in nats, starts a candidate segment."""
    interval: int = Field(default=1, ge=1)
    """Every interval-th candidate is a cutpoint, beginning with the first."""


class Whole(Namespace):
    """GRPO, RLOO: a response is one segment."""

    type: Literal["whole"]


class TreeMean(Namespace):
    """V(node) = mean of its children's values, V(leaf) = its reward."""

    type: Literal["tree_mean"]


class MonteCarlo(Namespace):
    """V(state) = mean reward of value rollouts from it; states of a question with equal token ids share them."""

    type: Literal["monte_carlo"]
    rollouts: int = Field(default=9, ge=1)
    """Value rollouts a state."""
    prompt: Literal["always", "cut"] = "cut"
    """Value the prompt always, or only where a cutpoint lies right behind it (SPO-chain)."""
    prover: str | None = None
    """Policy that samples the value rollouts. null: the one that is trained. first: the one that training began with,
    which stays as it is; or the folder of another one with the same tokens. It is sampled by an engine of its own, of
    the policy's kind and dtype."""


class AdaptiveMonteCarlo(Namespace):
    """Monte Carlo that stops sampling a state once its value is certain enough, and shares value rollouts.

    A rollout counts for every state of its question that it came through, and equal states share one fan. No state of
    a question goes on once all its rewards agree and their common mean is certain by the same tolerance.
    """

    type: Literal["adaptive_monte_carlo"]
    tolerance: Share = 0.5
    """A state is sampled until the central 90 % interval of its Beta posterior is narrower."""
    min_rollouts: int = Field(default=4, ge=1)
    """Value rollouts begun at a state at first, and again each time it is not decided."""
    max_rollouts: int = Field(default=9, ge=1)
    """Number of rollouts counted for a state from which on no more are started there."""
    prompt: Literal["always", "cut"] = "cut"
    """The same choice as ``prompt`` of monte_carlo."""

    @model_validator(mode="after")
    def _ordered(self) -> AdaptiveMonteCarlo:
        if self.min_rollouts > self.max_rollouts:
            raise ValueError(f"min_rollouts {self.min_rollouts} exceeds max_rollouts {self.max_rollouts}")
        return self


class Critic(Namespace):
    """V(state) by a network that is trained on the returns of the trees it sees; the policy waits until it is warm.

    It is the policy's own first weights with a scalar head, or a head alone; rewards in 0..1 are learnt as
    probabilities (cross-entropy), others by squared error.
    """

    type: Literal["critic"]
    network: Literal["copy", "head"] = "copy"
    """What is trained: a copy of the first policy with a head, or a small head on the policy's own hidden states, which
    gets no gradient to them."""
    surprise: bool = False
    """Whether it also sees how improbable the response's tokens were so far, as they were sampled: log-probs that
    sampling gives for nothing, and that a network reading the tokens would have to learn anew."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Constant learning rate of its AdamW, whose other numbers are those of learn."""
    epochs: int = Field(default=2, ge=1)
    """Passes over the trees in an iteration."""
    optimizer_steps: int = Field(default=4, ge=1)
    """Optimizer steps an epoch; trees are shuffled and divided evenly among them."""
    replay: int = Field(default=2, ge=1)
    """Newest iterations whose trees it is trained on."""
    loss: Literal["auto", "cross_entropy", "squared"] = "auto"
    """auto: cross-entropy where all rewards lie in 0..1, else squared error."""
    clip: float | None = Field(default=None, gt=0)
    """Largest change of a value in an iteration that the squared error rewards (PPO's value clip); null: none."""
    warmup_iterations: int = Field(default=4, ge=0)
    """First iterations, which train the critic on the first policy's rollouts and leave the policy as it is."""
    min_explained_variance: float | None = Field(default=0.1, lt=1)
    """Stop before its values are first used where it explains less of the variance of returns that it has not seen;
    null: use it all the same."""

    @model_validator(mode="after")
    def _consistent(self) -> Critic:
        if self.warmup_iterations == 0 and self.min_explained_variance is not None:
            raise ValueError(
                "warmup_iterations 0 uses a critic that has learnt nothing: raise it, or set min_explained_variance "
                "to null"
            )
        if self.clip is not None and self.loss != "squared":
            raise ValueError("clip belongs to the squared error: set loss to squared, or clip to null")
        return self


class GoldAnswer(Namespace):
    """V(state) = probability of the right answer after it, by one forward pass of the policy and without a rollout.

    The answer is put right behind the prefix, so what the policy would still work out does not count.
    """

    type: Literal["gold_answer"]
    cue: str | None = None
    """Text between prefix and answer, not scored; null: as the template's answer form begins an answer."""
    close: str | None = None
    """Text behind the answer, scored with it; null: as the answer form ends one. Where it is empty the policy's EOS
    token stands there."""


class NoValue(Namespace):
    """Rewards of whole responses are compared as they are."""

    type: Literal["none"]


class Difference(Namespace):
    """A = V(child) - V(parent)."""

    type: Literal["difference"]


class LeaveOneOut(Namespace):
    """A = V(child) - mean of its siblings' values."""

    type: Literal["leave_one_out"]


class GroupNormalized(Namespace):
    """A = (V(child) - mean) / standard deviation over siblings."""

    type: Literal["group_normalized"]


class BestOfKProgress(Namespace):
    """Progress of a best-of-k prover added to the policy's own value (process advantage verifiers)."""

    type: Literal["best_of_k_progress"]
    k: int = Field(default=4, ge=1)
    """The prover's success is that of the best of k samples of the policy: 1 - (1 - V)^k."""
    weight: float = Field(default=5.0, ge=0)
    """Weight of the prover's progress."""
    own: Literal["value", "reward"] = "value"
    """The policy's own value, which the progress is added to: V(child), or the mean reward of the responses that pass
    through the segment, where values are those of a prover."""
    baseline: Literal["none", "parent", "prompt"] = "none"
    """Baseline subtracted from the policy's own value: none, V(parent) (of own value), or the mean reward of the
    question's responses (prompt, of own reward)."""

    @model_validator(mode="after")
    def _fitting(self) -> BestOfKProgress:
        if self.baseline == ("prompt" if self.own == "value" else "parent"):
            raise ValueError(f"baseline {self.baseline} does not go with own {self.own}; see docs/algorithms.md")
        return self


class GAE(Namespace):
    """Generalised advantage estimation (arXiv 1506.02438) without discount: A = delta + lambda * A of what follows,
    delta = V(after) - V(before); where a tree branches, what follows is the mean over the branches."""

    model_config = ConfigDict(serialize_by_alias=True)

    type: Literal["gae"]
    lambda_: Share = Field(default=0.95, alias="lambda")
    """0 over segments is ``difference``; 1 is the mean return below less V(before)."""
    over: Literal["tokens", "segments"] = "segments"
    """Steps between values: single tokens, which a critic alone values, or segments."""


class Rejection(Namespace):
    """Rejection sampling: A = 1 for every kept response that passes through the segment, 0 for what none does."""

    type: Literal["rejection"]
    threshold: float = 1.0
    """A response with this reward or more is kept."""
    per_question: int | None = Field(default=10, ge=1)
    """Most responses kept of a question's tree, the first ones of different token ids; null: all of them."""


class AllTokens(Namespace):
    """Train every token of a segment."""

    type: Literal["all"]


class LowProbability(Namespace):
    """Train only tokens at which the policy decided something: those it sampled with a low probability."""

    type: Literal["low_probability"]
    threshold: Share = 0.9
    """Only tokens sampled with a lower probability are trained."""


Partition = FixedTokens | Cutpoints | EqualParts | Delimiter | Entropy | Whole
CutPartition = Cutpoints | EqualParts | Delimiter | Entropy
CUT_TYPES = ("cutpoints", "equal_parts", "delimiter", "entropy")
Value = TreeMean | MonteCarlo | AdaptiveMonteCarlo | Critic | GoldAnswer | NoValue | CustomParams
Advantage = Difference | LeaveOneOut | GroupNormalized | BestOfKProgress | GAE | Rejection | CustomParams
Mask = AllTokens | LowProbability


class CreditParams(Namespace):
    partition: Annotated[Partition, Field(discriminator="type")]
    value: Annotated[Value, Field(discriminator="type"), named("credit.value")]
    advantage: Annotated[Advantage, Field(discriminator="type"), named("credit.advantage")]
    mask: Annotated[Mask, Field(discriminator="type")]
