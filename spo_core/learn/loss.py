"""The loss of trained tokens, and estimates of the KL to the reference policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from spo_core.config import CustomParams, KLPenalty, LearnParams
from spo_core.errors import ConfigError, TrainingError, type_and_line
from spo_core.system.plugins import load

LOG_RATIO_LIMIT = 10.0  # as in the reference implementation: exp() of a log-ratio stays finite
MADE_UP = 4  # tokens that a loss is tried with before training
# The trainer's metrics; those of the loss stand between the first two, and may have none of these names.
LOSS_MEANS = ("policy_loss", "kl")  # over trained tokens
POLICY_MEANS = ("nll", "entropy", "importance_weight")  # over trained tokens; nll and entropy in nats
COUNTS = ("trained_tokens", "forwarded_tokens", "guarded_segments")  # summed over an iteration's passes
PASS_SUMS = ("loss", "gap", "fresh")  # of a pass, not reported as they are
STEP_METRICS = ("learning_rate", "grad_norm", "kl_coefficient", "logprob_gap", "optimizer_steps", "skipped")
RESERVED = frozenset((*LOSS_MEANS, *POLICY_MEANS, *COUNTS, *PASS_SUMS, *STEP_METRICS))


@dataclass(frozen=True, eq=False, slots=True)
class LossInputs:
    """All trained tokens of one forward pass, each [tokens]."""

    logprobs: Tensor
    """Log-probs under the policy that is trained; has a gradient."""
    old_logprobs: Tensor
    """Log-probs under the policy that sampled, as its engine gave them; with ``learn.importance_cap`` those that the
    trainer computes before the iteration's first step."""
    advantages: Tensor
    segments: Tensor
    """int64: number of the token's segment within the pass, rising from 0."""


@dataclass(frozen=True, eq=False, slots=True)
class LossOutputs:
    """The ``loss`` of each token, [tokens]; ``metrics``, each [tokens], are reported as means named train/<name>."""

    loss: Tensor
    metrics: Mapping[str, Tensor]


class TokenLoss(Protocol):
    """The signature of losses: the built-in one, and the function that ``learn.loss.path`` names."""

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        """Return each token's loss. Names of metrics must be the same in every call: ranks add the metrics up."""
        ...


def likelihood_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """exp(logp - old) with the log-ratio kept within ±LOG_RATIO_LIMIT, [tokens]."""
    return (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def ppo_clip(inputs: LossInputs, params: LearnParams) -> LossOutputs:
    """max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)), r = exp(logp - old) (paper equation 7)."""
    ratio = likelihood_ratio(inputs.logprobs, inputs.old_logprobs)
    clipped_ratio = ratio.clamp(1 - params.clip_low, 1 + params.clip_high)
    unclipped_loss, clipped_loss = -inputs.advantages * ratio, -inputs.advantages * clipped_ratio
    metrics = {"ratio": ratio.detach(), "clip_fraction": (clipped_loss > unclipped_loss).detach()}
    return LossOutputs(torch.maximum(unclipped_loss, clipped_loss), metrics)


def likelihood(inputs: LossInputs) -> LossOutputs:
    """-A log p: maximum likelihood where A is 1. Losses of whole sequences train by it too (``sequences``)."""
    return LossOutputs(-inputs.advantages * inputs.logprobs, {})


class CheckedLoss:
    """The loss that params choose, with every output checked. A trial on made-up tokens tells the names of ``metrics``.

    Raises ConfigError where the trial fails or gives no loss, TrainingError where a later call does.
    """

    def __init__(self, params: LearnParams) -> None:
        chosen = params.loss
        self._where = f"learn.loss: {chosen.path}" if isinstance(chosen, CustomParams) else "learn.loss"
        self._function: TokenLoss = partial(ppo_clip, params=params) if chosen.type == "ppo_clip" else likelihood
        if isinstance(chosen, CustomParams):
            self._function = load("learn.loss", chosen.path, chosen.options, TokenLoss)
        logprobs = torch.linspace(-2.0, -0.5, MADE_UP, requires_grad=True)
        tokens = LossInputs(
            logprobs, logprobs.detach() - 0.1, torch.tensor([1.0, -1.0, 0.5, -0.5]), torch.tensor([0, 0, 1, 1])
        )
        self.metrics: tuple[str, ...] = ()
        try:
            outputs = self._call(tokens)
            self.metrics = tuple(outputs.metrics)
            self._check(outputs, tokens)
        except TrainingError as error:
            raise ConfigError(f"{error} (tried on {MADE_UP} made-up tokens)") from error
        unfit = [name for name in self.metrics if name in RESERVED or not name.isidentifier()]
        if unfit:
            raise ConfigError(f"{self._where} gives a metric {unfit[0]!r}, which is taken or no name; choose another")

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        outputs = self._call(inputs)
        self._check(outputs, inputs)
        return outputs

    def _call(self, inputs: LossInputs) -> LossOutputs:
        try:
            outputs = self._function(inputs)
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise TrainingError(f"{self._where} failed with {type_and_line(error)}") from error
        if not isinstance(outputs, LossOutputs) or not all(isinstance(name, str) for name in outputs.metrics):
            raise TrainingError(f"{self._where} gave {type(outputs).__name__}; it must give LossOutputs(loss, metrics)")
        return outputs

    def _check(self, outputs: LossOutputs, inputs: LossInputs) -> None:
        if tuple(outputs.metrics) != self.metrics:
            raise TrainingError(f"{self._where} gave metrics {list(outputs.metrics)}, before {list(self.metrics)}")
        for name, found in {"the loss": outputs.loss, **outputs.metrics}.items():
            if not isinstance(found, Tensor) or found.shape != inputs.logprobs.shape:
                shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise TrainingError(f"{self._where}: {name} is {shape}, not a tensor of one number a token")
        if inputs.logprobs.requires_grad and not outputs.loss.requires_grad:
            raise TrainingError(f"{self._where}: the loss has no gradient; compute it from inputs.logprobs")


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, params: KLPenalty) -> Tensor:
    """Estimate of KL(policy || reference) at each sampled token, in nats; [tokens].

    With d = reference - logp: k1 = -d (unbiased, may be negative; as a *loss* its gradient is zero on average, so it
    belongs in the reward), k2 = d^2 / 2, k3 = exp(d) - d - 1 (never negative; the published "control_variate").
    """
    d = (reference_logprobs - logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if params.estimator == "k1":
        kl = -d
    elif params.estimator == "k2":
        kl = d.square() / 2
    else:
        kl = d.exp() - d - 1
    return kl if params.max is None else kl.clamp(max=params.max)


def importance_weights(trainer_logprobs: Tensor, engine_logprobs: Tensor, cap: float) -> Tensor:
    """min(trainer / engine, cap), [tokens]: corrects for an engine whose probabilities are not quite the trainer's."""
    return (trainer_logprobs - engine_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp().clamp(max=cap)


def adapted_coefficient(coefficient: float, kl: float, tokens: int, params: KLPenalty) -> float:
    """The KL coefficient after an iteration in which ``tokens`` were trained at a mean KL of ``kl`` nats a token.

    The proportional controller of Ziegler et al. (arXiv 1909.08593), as in the reference implementation.
    """
    if params.adaptive is None:
        return coefficient
    error = min(max(kl / params.adaptive.target - 1, -0.2), 0.2)
    return coefficient * (1 + error * min(1.0, tokens / params.adaptive.horizon))
