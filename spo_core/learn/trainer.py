"""The update of the policy. It knows neither algorithm nor number of ranks, only per-token advantages and masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spo_core.config import SEQUENCE_LOSSES, LearnParams
from spo_core.credit.pairs import CreditedTree
from spo_core.errors import TrainingError
from spo_core.learn.backend import Backend
from spo_core.learn.logprobs import sequence_logprobs, token_numbers
from spo_core.learn.loss import (
    COUNTS,
    LOSS_MEANS,
    PASS_SUMS,
    POLICY_MEANS,
    CheckedLoss,
    LossInputs,
    adapted_coefficient,
    importance_weights,
    kl_estimate,
    likelihood_ratio,
)
from spo_core.learn.objective import WeightedTree, counted_masks, plan_epoch, unweighted
from spo_core.learn.pass_tokens import measured_gaps, pass_tokens, per_token, segments_beyond
from spo_core.learn.schedule import learning_rate
from spo_core.learn.sequences import SequenceLoss, Sums
from spo_core.learn.splits import ForwardBatch, divide, smallest
from spo_core.learn.tree_batch import TreeBatch, layout
from spo_core.rollout.gap import trainer_limit
from spo_core.rollout.seeds import derive_seed
from spo_core.system.files import read_json, write_json
from spo_core.system.progress import Progress


class Trainer:
    """Trains the policy of a backend on credited trees.

    ``step`` counts finished optimizer steps: the policy version of the present weights. ``schedule_start`` is the step
    at which the learning rate's schedule began.
    """

    def __init__(self, backend: Backend, params: LearnParams, *, temperature: float, seed: int) -> None:
        self.backend, self.params = backend, params
        self.loss = CheckedLoss(params)
        self.means = (*LOSS_MEANS, *self.loss.metrics, *POLICY_MEANS)
        self.temperature, self.seed = temperature, seed
        self.step = 0
        self.schedule_start = 0
        self.kl_coefficient = params.kl.coefficient if params.kl.type == "penalty" else 0.0

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next optimizer step."""
        return learning_rate(self.step - self.schedule_start, self.params)

    def restart_learning_rate(self) -> None:
        """Begin the learning rate's schedule anew, warm-up included, with the next step."""
        self.schedule_start = self.step

    def save(self, folder: Path) -> None:
        """Write all that the next iteration depends on but the weights."""
        self.backend.save_optimizer(folder / "optimizer.safetensors")
        if self.backend.rank:
            return
        state = {"step": self.step, "schedule_start": self.schedule_start, "kl_coefficient": self.kl_coefficient}
        write_json(folder / "state.json", state)

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote."""
        self.backend.load_optimizer(folder / "optimizer.safetensors")
        state = read_json(folder / "state.json")
        self.step, self.schedule_start = state["step"], state["schedule_start"]
        self.kl_coefficient = state["kl_coefficient"]

    def close(self) -> None:
        """Nothing runs beside this process."""

    def train_iteration(
        self, pairs: Sequence[CreditedTree], *, iteration: int, progress: Progress | None = None
    ) -> dict[str, float]:
        """Train on credited trees for ``learn.epochs`` epochs; returns metrics, averaged over trained tokens.

        Where nothing changes the policy, no step is made and ``skipped`` is 1. Raises TrainingError where the loss, a
        metric or the gradient is not finite, or where the log-probs of trees sampled by the present policy version are
        farther from the trainer's than ``gap.trainer_limit``.
        """
        rng = np.random.default_rng(derive_seed(self.seed, "minibatches", iteration))
        began = self.step
        sampler = -1 if self.params.restart else began  # the policy version whose log-probs the trainer's must equal
        old = self._log_probs_before(pairs) if self.params.importance_cap is not None else None
        sequences = None
        if self.params.loss.type in SEQUENCE_LOSSES:
            sequences = SequenceLoss(pairs, self.params, repeat(rng), self._reference_logprobs)
        sums = dict.fromkeys((*self.means, *COUNTS), 0.0)
        more: dict[str, float] = {"grad_norm": 0.0}
        if self.params.kl.type == "penalty":
            more["kl_coefficient"] = self.kl_coefficient
        for epoch in range(self.params.epochs):
            steps: Sequence[Any] = sequences.plan_epoch(rng) if sequences else plan_epoch(pairs, self.params, rng)
            for number, step in enumerate(steps, start=1):
                if self.params.restart and self.step == began:
                    self.backend.restart()
                    self.restart_learning_rate()
                trees = sequences.weigh(step, self._sequence_logprobs) if sequences else step
                more |= {"learning_rate": self.learning_rate}
                step_sums, gap, norm = self._optimizer_step(trees, old, sampler)
                for name in sums:
                    sums[name] += step_sums[name]
                more["grad_norm"] += norm
                if gap is not None:
                    more["logprob_gap"] = gap
                if progress:
                    progress(epoch * len(steps) + number, self.params.epochs * len(steps))
        done = self.step - began
        counts = {name: sums[name] for name in self._reported(COUNTS)}
        if not done:
            return counts | {"optimizer_steps": 0, "skipped": 1}
        means = {name: sums[name] / sums["trained_tokens"] for name in self._reported(self.means)}
        if self.params.kl.type == "penalty":
            self.kl_coefficient = adapted_coefficient(
                self.kl_coefficient, means["kl"], int(sums["trained_tokens"]), self.params.kl
            )
        if sequences:
            means |= sequences.metrics()
        return counts | means | more | {"grad_norm": more["grad_norm"] / done, "optimizer_steps": done, "skipped": 0}

    def _reported(self, names: Sequence[str]) -> list[str]:
        """Keep the metrics that these params measure; the sums of the others mean nothing."""
        optional = {
            "kl": self.params.kl.type == "penalty",
            "entropy": self.params.report_entropy,
            "importance_weight": self.params.importance_cap is not None,
            "guarded_segments": self.params.max_ratio is not None,
        }
        return [name for name in names if optional.get(name, True)]

    def add_gradient(self, pairs: Sequence[CreditedTree]) -> int:
        """Add the gradient of the summed losses of credited trees' tokens, or of their sequences, to that of the
        backend; all are sampled by the present policy. Returns the number of trained tokens.

        No step is made, and nothing is normalised, whitened or added for the KL, so that a tree's gradient does not
        depend on which others are there. Raises TrainingError as ``train_iteration``.
        """
        if self.params.loss.type in SEQUENCE_LOSSES:
            rngs = (np.random.default_rng(derive_seed(self.seed, "pairs", tree.question_id)) for tree, _ in pairs)
            sequences = SequenceLoss(pairs, self.params, rngs, self._reference_logprobs)
            trees = sequences.weigh(sequences.units, self._sequence_logprobs, summed=True) if sequences.units else []
        else:
            trees = [unweighted(i, *pair, self.params) for i, pair in enumerate(pairs)]
            trees = [tree for tree in trees if any(mask.any() for mask in tree.masks)]
        return int(self._accumulate(trees, None, self.step)[0]["trained_tokens"]) if trees else 0

    def _optimizer_step(
        self,
        trees: list[WeightedTree],
        old: list[tuple[np.ndarray, ...]] | None,
        began: int,
    ) -> tuple[dict[str, float], float | None, float]:
        """Make one optimizer step; returns what ``_accumulate`` does, and the gradient's norm."""
        sums, gap = self._accumulate(trees, old, began)
        norm = self.backend.step(self.learning_rate)
        if not math.isfinite(norm):
            raise TrainingError(f"gradient norm is {norm} at optimizer step {self.step}; lower learn.learning_rate")
        self.step += 1
        return sums, gap, norm

    def _accumulate(
        self,
        trees: list[WeightedTree],
        old: list[tuple[np.ndarray, ...]] | None,
        began: int,
    ) -> tuple[dict[str, float], float | None]:
        """Add the gradient of one optimizer step's trees; returns sums over the trained tokens of all ranks, and the
        log-prob gap or None.

        The gap is measured in the iteration's first step (``began``), over all sampled tokens of fresh trees that are
        forwarded; a tree is fresh if the policy of that step sampled it.
        """
        shares = divide(trees, self.params.max_tokens_per_forward, self.backend.ranks)
        batches, spare = shares[self.backend.rank], smallest(shares)
        names = (*self.means, *COUNTS, *PASS_SUMS)
        total = torch.zeros(len(names), dtype=torch.float64, device=self.backend.device)
        for number, forward_batch in enumerate(batches, start=1):
            found = self._pass(forward_batch or spare, old, began, last=number == len(batches), empty=not forward_batch)
            total += torch.stack([found[name] for name in names])
        sums = dict(zip(names, self.backend.total(total).tolist(), strict=True))
        if not math.isfinite(sums["loss"]):
            raise TrainingError(f"loss is {sums['loss']} at optimizer step {self.step}; lower learn.learning_rate")
        for name in self.loss.metrics:
            if not math.isfinite(sums[name]):
                raise TrainingError(f"metric {name} of learn.loss is {sums[name]} at optimizer step {self.step}")
        gap = sums["gap"] / sums["fresh"] if self.step == began and sums["fresh"] else None
        limit = trainer_limit(self.params)
        if gap is not None and not gap <= limit:
            raise TrainingError(
                f"log-probs of engine and trainer differ by {gap:.3g} nats a token, and rounding explains at most "
                f"{limit:g} (learn.max_logprob_gap): the engine sampled with other weights, temperature or token ids"
            )
        return sums, gap

    def _pass(
        self,
        forward_batch: ForwardBatch,
        old: list[tuple[np.ndarray, ...]] | None,
        began: int,
        *,
        empty: bool,
        last: bool,
    ) -> dict[str, Tensor]:
        """Add the gradient of one forward pass. Returns float64 scalars by name: sums over its trained tokens, counts,
        and the summed log-prob gap with the number of tokens in it.

        An ``empty`` pass only keeps a rank in step with the others: its loss is multiplied by 0, and its sums are 0.
        """
        params, kl_params = self.params, self.params.kl
        tree_batch = layout([tree.segments for tree in forward_batch], self.backend.device, measure=self.step == began)
        tokens = pass_tokens(tree_batch, forward_batch, began)
        reference = None
        if kl_params.type == "penalty":
            reference = self.backend.reference_logprobs(replace(tree_batch, measured=None), self.temperature)
        logprobs, entropies = self.backend.logprobs(tree_batch, self.temperature, params.report_entropy)
        logprobs, measured = logprobs.split([len(tree_batch.sources), len(logprobs) - len(tree_batch.sources)])
        if logprobs.shape != tokens.old.shape:
            raise TrainingError(f"{len(logprobs)} trained log-probs for {len(tokens.old)} sampled ones")
        before, advantages = tokens.old, tokens.advantages
        weights = torch.ones_like(before)
        if old is not None:
            assert params.importance_cap is not None
            before = per_token(tree_batch, forward_batch, lambda tree, i: old[tree.pair][i]).to(before.device)
            weights = importance_weights(before, tokens.old, params.importance_cap)
        kl = torch.zeros_like(before)
        if reference is not None and kl_params.type == "penalty":
            kl = kl_estimate(logprobs, reference, kl_params)
            if kl_params.where == "reward":
                kl = kl_estimate(before, reference, kl_params)
                advantages = advantages - self.kl_coefficient * kl
        outputs = self.loss(LossInputs(logprobs, before, advantages, tokens.segment))
        guarded = segments_beyond(likelihood_ratio(logprobs.detach(), before), tokens.segment, params.max_ratio)
        kept = ~guarded[tokens.segment]
        policy = torch.where(kept, tokens.policy_weights * weights * outputs.loss, 0.0)
        summed = policy.sum()
        if kl_params.type == "penalty" and kl_params.where == "loss":
            summed = summed + self.kl_coefficient * torch.where(kept, tokens.kl_weights * kl, 0.0).sum()
        self.backend.backward(summed * 0.0 if empty else summed, last=last)
        with torch.no_grad():
            gaps = torch.cat(
                [
                    (logprobs - tokens.old).abs()[tokens.fresh],
                    measured_gaps(tree_batch, forward_batch, measured, began),
                ]
            )
            sums = {
                "policy_loss": outputs.loss.sum(),
                "kl": kl.sum(),
                **{name: metric.sum() for name, metric in outputs.metrics.items()},
                "nll": -logprobs.sum(),
                "entropy": entropies.sum() if entropies is not None else torch.zeros(()),
                "importance_weight": weights.sum(),
                "loss": summed,
                "trained_tokens": torch.tensor(len(before)),
                "forwarded_tokens": torch.tensor(tree_batch.forwarded_tokens),
                "guarded_segments": guarded.sum(),
                "gap": gaps.sum(),
                "fresh": torch.tensor(len(gaps)),
            }
            found = {name: value.detach().double().to(self.backend.device) for name, value in sums.items()}
            return {name: torch.zeros_like(value) for name, value in found.items()} if empty else found

    def _sequence_logprobs(self, trees: Sequence[WeightedTree]) -> Sums:
        """Log-probs of the trees' trained nodes under the present policy."""
        return sequence_logprobs(self.backend, trees, self._present, self.params.max_tokens_per_forward)

    def _reference_logprobs(self, trees: Sequence[WeightedTree]) -> Sums:
        """The same under the reference policy."""

        def reference(batch: TreeBatch) -> Tensor:
            return self.backend.reference_logprobs(batch, self.temperature)

        return sequence_logprobs(self.backend, trees, reference, self.params.max_tokens_per_forward)

    def _present(self, batch: TreeBatch) -> Tensor:
        return self.backend.logprobs(batch, self.temperature)[0]

    def _log_probs_before(self, pairs: Sequence[CreditedTree]) -> list[tuple[np.ndarray, ...]]:
        """The trainer's own log-probs of every token that may be trained, before any update; per pair and node."""
        masks = [counted_masks(credit, self.params) for _, credit in pairs]
        trees = [WeightedTree(i, tree, masks[i], (), (), ()) for i, (tree, _) in enumerate(pairs)]
        trees = [tree for tree in trees if any(mask.any() for mask in tree.masks)]
        found = iter(token_numbers(self.backend, trees, self._present, self.params.max_tokens_per_forward))
        result = [tuple(np.zeros(len(m), np.float32) for m in own) for own in masks]
        for tree in trees:
            for values, mask in zip(result[tree.pair], tree.masks, strict=True):
                values[mask] = next(found)
        return result
