"""The update on one device. Knows no algorithm: it sees segments with a per-token advantage and mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from spo_core.config import LearnParams
from spo_core.credit import Credit
from spo_core.errors import TrainingError
from spo_core.learn.loss import token_loss
from spo_core.learn.tree_forward import TrainedSegments, TreeBatch, layout, trained_logprobs
from spo_core.rollout.seeds import derive_seed
from spo_core.tree import RolloutTree

Progress = Callable[[int, int], None]  # (optimizer steps done, of)


@dataclass(frozen=True, eq=False, slots=True)
class _Item:
    """A tree to train on: its trained tokens flattened in layout order."""

    tree: RolloutTree
    credit: Credit

    @property
    def masks(self) -> tuple[np.ndarray, ...]:
        """Tokens of segments without an advantage change nothing and are dropped (reference facts 1.3, filter)."""
        return tuple(
            mask & (advantage != 0) for mask, advantage in zip(self.credit.masks, self.credit.advantages, strict=True)
        )


class Trainer:
    """PPO-clip updates of a policy over credited trees, with AdamW and linear learning-rate warm-up."""

    def __init__(
        self,
        model: PreTrainedModel,
        reference: PreTrainedModel | None,
        params: LearnParams,
        *,
        temperature: float,
        seed: int,
    ) -> None:
        self.model, self.reference, self.params = model, reference, params
        self.temperature, self.seed = temperature, seed
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=params.learning_rate, betas=params.betas, weight_decay=params.weight_decay
        )
        self.step = 0
        if reference is None and params.kl_coefficient > 0:
            raise ValueError("learn.kl_coefficient needs a reference policy")

    def train_iteration(
        self,
        trees: Sequence[RolloutTree],
        credits: Sequence[Credit],
        *,
        iteration: int,
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """Epochs of optimizer steps over an iteration's trees; the metrics, averaged over trained tokens.

        Trees without any advantage are left out; where none is left, nothing is done and ``skipped`` is 1.
        Raises TrainingError where the loss or its gradient is not finite, or the trees are of another policy.
        """
        items = [_Item(t, c) for t, c in zip(trees, credits, strict=True)]
        items = [item for item in items if any(mask.any() for mask in item.masks)]
        totals: dict[str, float] = {"trained_tokens": 0, "forwarded_tokens": 0, "optimizer_steps": 0}
        if not items:
            return totals | {"skipped": 1}
        self.model.train()
        rng = np.random.default_rng(derive_seed(self.seed, "minibatches", iteration))
        for epoch in range(self.params.epochs):
            groups = np.array_split(rng.permutation(len(items)), min(self.params.optimizer_steps, len(items)))
            for number, group in enumerate(groups, start=1):
                self._optimizer_step([items[i] for i in group], totals)
                if progress:
                    progress(epoch * len(groups) + number, self.params.epochs * len(groups))
        return _averages(totals) | {"skipped": 0}

    def _optimizer_step(self, items: list[_Item], totals: dict[str, float]) -> None:
        count = sum(int(mask.sum()) for item in items for mask in item.masks)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        for part in split_by_tokens(items, self.params.max_tokens_per_forward):
            batch = layout([TrainedSegments(item.tree, item.masks) for item in part], self.model.device)
            self._backward(batch, part, count, totals)
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.params.max_grad_norm))
        if not math.isfinite(norm):
            raise TrainingError(f"gradient norm is {norm} at optimizer step {self.step}; lower learn.learning_rate")
        self.optimizer.step()
        self.step += 1
        totals["optimizer_steps"] += 1
        totals["grad_norm_sum"] = totals.get("grad_norm_sum", 0.0) + norm
        totals["learning_rate"] = self.optimizer.param_groups[0]["lr"]

    def _backward(self, batch: TreeBatch, part: list[_Item], count: int, totals: dict[str, float]) -> None:
        """Add the gradient of one forward pass; ``count`` normalises over the whole optimizer batch (paper)."""
        old = self._trained(batch, part, lambda item, i: item.tree.nodes[i].logprobs)
        advantages = self._trained(batch, part, lambda item, i: item.credit.advantages[i])
        reference = None
        if self.reference is not None and self.params.kl_coefficient > 0:
            with torch.inference_mode():
                reference = trained_logprobs(self.reference, batch, self.temperature)
            reference = reference.clone()
        logprobs = trained_logprobs(self.model, batch, self.temperature)
        if logprobs.shape != old.shape:
            raise TrainingError(f"{len(logprobs)} trained log-probs for {len(old)} sampled ones")
        if totals["optimizer_steps"] == 0:  # the policy is still the one that sampled
            self._check_gap((logprobs.detach() - old).abs(), totals)
        tokens = token_loss(logprobs, old, advantages, reference, self.params)
        loss = (tokens.policy.sum() + self.params.kl_coefficient * tokens.kl.sum()) / count
        if not torch.isfinite(loss):
            raise TrainingError(f"loss is {loss.item()} at optimizer step {self.step}; lower learn.learning_rate")
        loss.backward()
        with torch.no_grad():
            sums = {
                "policy_loss_sum": tokens.policy.sum(),
                "kl_sum": tokens.kl.sum(),
                "ratio_sum": tokens.ratio.sum(),
                "clip_fraction_sum": tokens.clipped.float().sum(),
                "surprisal_sum": -logprobs.sum(),  # nats a trained token
            }
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + float(value)
        totals["trained_tokens"] += len(old)
        totals["forwarded_tokens"] += batch.forwarded_tokens

    def _check_gap(self, gaps: Tensor, totals: dict[str, float]) -> None:
        """Raise TrainingError where the engine's log-probs are not those of the policy; ``gaps`` [tokens], in nats."""
        mean = float(gaps.mean())
        totals["logprob_gap"] = max(totals.get("logprob_gap", 0.0), mean)
        if mean > self.params.max_logprob_gap:
            raise TrainingError(
                f"log-probs of engine and trainer differ by {mean:.3g} nats a token (learn.max_logprob_gap "
                f"{self.params.max_logprob_gap}): the engine sampled with other weights, temperature or token ids"
            )

    def _trained(self, batch: TreeBatch, part: list[_Item], values: Callable[[_Item, int], np.ndarray]) -> Tensor:
        """A per-token quantity of all trained tokens, in the batch's order."""
        chosen = [values(part[i], node)[part[i].masks[node]] for i, node in batch.order]
        return torch.from_numpy(np.concatenate(chosen).astype(np.float32)).to(self.model.device)

    @property
    def learning_rate(self) -> float:
        return self.params.learning_rate * min(1.0, (self.step + 1) / max(1, self.params.warmup_steps))


def split_by_tokens(items: list[_Item], budget: int) -> list[list[_Item]]:
    """Group trees so that each group has at most ``budget`` tokens, one tree at least."""
    groups: list[list[_Item]] = []
    size = 0
    for item in items:
        tokens = len(item.tree.nodes[0].token_ids) + item.tree.generated_tokens
        if not groups or size + tokens > budget:
            groups.append([])
            size = 0
        groups[-1].append(item)
        size += tokens
    return groups


def _averages(totals: dict[str, float]) -> dict[str, float]:
    averages = {}
    for name, value in totals.items():
        if name == "grad_norm_sum":
            averages["grad_norm"] = value / totals["optimizer_steps"]
        elif name.endswith("_sum"):
            averages[name.removesuffix("_sum")] = value / totals["trained_tokens"]
        else:
            averages[name] = value
    return averages
