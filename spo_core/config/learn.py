"""``params/learn.yaml``: the update."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from spo_core.config.custom import CustomParams, named
from spo_core.config.namespace import Decay, Namespace
from spo_core.config.offline import SEQUENCE_LOSSES, DirectValue, DPOPositive, Likelihood

CHUNK_LOGITS = 2**26
"""Logits that the policy's head computes in one chunk of positions: 256 MB in float32."""

# Defaults that each ``fidelity`` chooses (docs/reference.md 2); a key given in params overrules them.
FIDELITY: dict[str, dict[str, Any]] = {
    "paper": {"normalization": "batch", "whitening": "none", "kl": {"type": "none"}},
    "reference": {
        "normalization": "micro_batch",
        "whitening": "micro_batch",
        "kl": {"type": "penalty", "estimator": "k3", "coefficient": 1e-4, "aggregation": "sequence"},
    },
}


class PPOClip(Namespace):
    """max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)), r = policy / sampling policy."""

    type: Literal["ppo_clip"]


class NoKL(Namespace):
    """Training without a KL penalty, and so without a reference policy."""

    type: Literal["none"]


class AdaptiveKL(Namespace):
    """The coefficient is multiplied by 1 + clip(KL / target - 1, -0.2, 0.2) x trained tokens / horizon."""

    target: float = Field(gt=0)
    """KL to the reference policy, in nats a trained token."""
    horizon: int = Field(default=10_000, ge=1)
    """Trained tokens over which the coefficient can change by its largest step."""


class KLPenalty(Namespace):
    """Keeps the policy near the one that training began with."""

    type: Literal["penalty"]
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL divergence, with d = log reference - log policy: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d -
    1."""
    where: Literal["loss", "reward"] = "loss"
    """Whether the penalty is added to the loss, or taken from each token's advantage (then it is that of the sampling
    policy, without gradient)."""
    coefficient: float = Field(default=1e-4, gt=0)
    """Weight of the penalty; its initial weight where it is adaptive."""
    aggregation: Literal["token", "sequence"] = "token"
    """How the penalty is summed in the loss: normalised as the policy loss, or per episode and averaged (reference)."""
    max: float | None = Field(default=None, gt=0)
    """Largest estimate of one token; null: no limit (the reference limits at 1e9, which is none)."""
    adaptive: AdaptiveKL | None = None
    """How the coefficient changes from iteration to iteration; null keeps it constant."""


class ReplayParams(Namespace):
    """Replay of sampled segments in later iterations; each is trained in at most one."""

    max_age: int = Field(default=1, ge=1)
    """Iterations in which a segment may be drawn, that of its sampling included; 1 trains what was just sampled."""
    per_question: int | None = Field(default=None, ge=1)
    """Most segments of a question drawn in an iteration; null: all."""
    segments: int | None = Field(default=None, ge=1)
    """Most segments drawn in an iteration; null: all. The others wait."""
    rule: Literal["fresh", "reference"] = "fresh"
    """Rule of drawing where a limit leaves some out. fresh: the newest first, at random within an iteration; others
    wait. reference: at random among all that wait, up to per_question; of these at random up to segments, and what that
    leaves over is lost."""
    unit: Literal["siblings", "segments"] = "siblings"
    """Unit of drawing: all segments of one parent, which share their prefix, or single segments (reference)."""


class TorchBackendParams(Namespace):
    """One device, in the process of the flow."""

    type: Literal["torch"]


class DeepSpeedBackendParams(Namespace):
    """Several ranks, started by DeepSpeed's launcher."""

    type: Literal["deepspeed"]
    ranks: int = Field(default=1, ge=1)
    """Processes, one a device."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """ZeRO stage, which says what is divided among ranks: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights
    too."""
    hostfile: str | None = None
    """DeepSpeed's list of machines and their slots; null: this machine. All must see the working directory."""
    offload_optimizer: bool = False
    """Keep the optimizer state in the memory of the CPU; needs zero_stage 1 or more."""

    @model_validator(mode="after")
    def _offload(self) -> DeepSpeedBackendParams:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1 or more")
        return self


Loss = PPOClip | Likelihood | DPOPositive | DirectValue | CustomParams


class LearnParams(Namespace):
    fidelity: Literal["paper", "reference"] = "paper"
    """Source of the defaults of normalization, whitening and kl: the paper, or the published code."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate of AdamW."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps over which the learning rate rises from 0."""
    warmup: Literal["linear", "log"] = "linear"
    """Shape of the rise; log is DeepSpeed's default and so the reference's: log(1 + step) / log(warmup_steps)."""
    decay_steps: int | None = Field(default=None, ge=1)
    """Optimizer step at which the learning rate has fallen linearly to 0; null: it stays at its peak."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's decay of the running mean and of the running square of gradients."""
    epsilon: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon, added to the denominator of its update."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    epochs: int = Field(default=1, ge=1)
    """Passes over an iteration's segments."""
    optimizer_steps: int = Field(default=4, ge=1)
    """Optimizer steps an epoch; an iteration's questions are shuffled and divided evenly among them."""
    zero_advantage: Literal["drop", "keep"] = "drop"
    """Whether segments whose advantage is 0 are left out (SPO-tree), or counted where the loss is normalised."""
    normalization: Literal["batch", "episode", "constant", "micro_batch"] = "batch"
    """Normalisation of the loss of an optimizer step. batch: mean over its tokens (paper, DAPO). episode: mean of the
    episodes' token means (GRPO as first published, GSPO). constant: sum over tokens / (episodes x episode_tokens) (Dr.
    GRPO). micro_batch: mean of the micro-batches' token means (reference)."""
    episode_tokens: int | None = Field(default=None, ge=1)
    """Tokens of an episode that normalization constant divides by, the same for short and long ones."""
    whitening: Literal["none", "micro_batch"] = "none"
    """Whitening of advantages (minus mean, over standard deviation) within the trained tokens of a micro-batch."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Episodes in a micro-batch, drawn at random; needed where normalization or whitening are by micro-batch."""
    loss: Annotated[Loss, Field(discriminator="type"), named("learn.loss")] = PPOClip(type="ppo_clip")
    """Policy loss. Of each trained token, averaged as normalization says, with the same weights and KL for all; or of
    whole sequences, averaged over the sequences or pairs of an optimizer step."""
    restart: bool = False
    """Begin the update of every iteration from the first policy, with a new optimizer and learning rate's schedule, as
    ReST-EM does."""
    clip_low: float = Field(default=0.2, gt=0)
    """Lower clip range: see clip_high."""
    clip_high: float = Field(default=0.2, gt=0)
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    max_ratio: float | None = Field(default=None, gt=1)
    """A segment whose mean ratio over its trained tokens is higher is left out of that step, and counted; null: none.
    The reference does so with whole micro-batches."""
    importance_cap: float | None = Field(default=None, gt=0)
    """Truncated importance correction: ratios are of the trainer's own log-probs before the update, and each token is
    weighted by min(trainer / engine, importance_cap); null: ratios are of the engine's log-probs."""
    kl: Annotated[NoKL | KLPenalty, Field(discriminator="type")] = NoKL(type="none")
    """Penalty on the distance to the reference policy."""
    report_entropy: bool = True
    """Measure the policy's entropy at trained positions."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient; a longer one is scaled down to it."""
    max_logprob_gap: float | None = Field(default=None, gt=0)
    """Largest mean difference, in nats a sampled token, between the engine's log-probs and the trainer's before an
    update; a quarter of it is warned of. null: what rounding explains in the coarser dtype of the two, 0.002 in
    float32, 0.0125 in float16, 0.1 in bfloat16."""
    max_tokens_per_forward: int = Field(default=16384, ge=1)
    """Token budget of one forward pass; more are computed in several, with the same result."""
    attention: Literal["auto", "rows", "flex"] = "auto"
    """How a tree attends: ranges of it with the path before them, in SDPA, or FlexAttention; auto: flex on GPUs."""
    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass instead of keeping what it computed."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of weights and activations in training. The optimizer updates float32 weights, which are the ones
    saved; gradients are summed in float32."""
    replay: ReplayParams = ReplayParams()
    backend: Annotated[TorchBackendParams | DeepSpeedBackendParams, Field(discriminator="type")] = TorchBackendParams(
        type="torch"
    )

    @model_validator(mode="after")
    def _consistent(self) -> LearnParams:
        if "micro_batch" in (self.normalization, self.whitening) and self.micro_batch is None:
            raise ValueError("normalization or whitening by micro_batch need learn.micro_batch, its episodes")
        if (self.normalization == "constant") != (self.episode_tokens is not None):
            raise ValueError("normalization constant and episode_tokens go together: set both, or neither")
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise ValueError(f"decay_steps {self.decay_steps} must exceed warmup_steps {self.warmup_steps}")
        if self.restart:
            self._check_restart()
        if self.loss.type in SEQUENCE_LOSSES:
            self._check_sequences()
        return self

    def _check_restart(self) -> None:
        if self.loss.type not in ("likelihood", "dpo_positive"):
            raise ValueError(
                f"restart: learn.loss {self.loss.type} compares with the sampling policy, which the first policy is "
                "not; restart goes with learn.loss likelihood or dpo_positive"
            )
        for key in ("importance_cap", "max_ratio"):
            if getattr(self, key) is not None:
                raise ValueError(f"restart: {key} compares with the sampling policy, which the first policy is not")

    def _check_sequences(self) -> None:
        """Refuse what is of single tokens. ValueError names the key."""
        unfit = {
            "zero_advantage": self.zero_advantage == "drop" and "drop leaves out sequences that it trains; choose keep",
            "normalization": self.normalization != "batch" and "it is averaged over sequences; choose batch",
            "whitening": self.whitening != "none" and "it takes values as they are; choose none",
            "kl": self.kl.type != "none" and "its beta holds the policy near the reference; choose none",
            "importance_cap": self.importance_cap is not None and "it weights no tokens; choose null",
            "max_ratio": self.max_ratio is not None and "it leaves out no segments; choose null",
            "replay.unit": self.replay.unit == "segments"
            and self.loss.type == "dpo_positive"
            and "segments tears siblings apart; choose siblings",
        }
        for key, why in unfit.items():
            if why:
                raise ValueError(f"{key}: learn.loss {self.loss.type} is of whole sequences, {why}")

    @property
    def needs_reference(self) -> bool:
        """Whether the update compares with the reference policy, the one that training began with."""
        return self.kl.type == "penalty" or self.loss.type in SEQUENCE_LOSSES

    @property
    def zero_stage(self) -> int:
        """ZeRO stage that DeepSpeed runs with; 0 without DeepSpeed. In bfloat16 stage 1 replaces stage 0, which would
        sum gradients in bfloat16; stage 1 sums them in float32 and takes less memory."""
        if self.backend.type == "torch":
            return 0
        return max(self.backend.zero_stage, 1) if self.dtype == "bfloat16" else self.backend.zero_stage


def with_fidelity(learn: dict[str, Any]) -> dict[str, Any]:
    """Add to the content of ``learn`` the keys that ``fidelity`` decides and that are not given."""
    chosen = FIDELITY.get(str(learn.get("fidelity", "paper")), {})
    kl = learn.get("kl")
    if isinstance(kl, dict) and "type" not in kl:
        learn = learn | {"kl": chosen.get("kl", {}) | kl}
    return chosen | learn
