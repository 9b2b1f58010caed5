"""A critic: values of states by a network that is trained on the returns of sampled trees.

It reads trees as the update does, packed with each prefix once. Its value of a state is that before the state's next
token; a return is the mean reward of the leaves below, branches weighing the same (``credit.value.tree_mean``).

On several ranks each holds the whole critic and computes a share of the trees; gradients are summed, so that all make
the same steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import PreTrainedModel

from spo_core.config import Critic as CriticParams
from spo_core.config import LearnParams
from spo_core.credit.value import tree_mean
from spo_core.errors import RunError, TrainingError
from spo_core.learn.backend import Backend
from spo_core.learn.head import trunk
from spo_core.learn.logprobs import token_numbers
from spo_core.learn.objective import WeightedTree
from spo_core.learn.precision import MasterWeights, rounded_copy
from spo_core.learn.splits import divide, smallest
from spo_core.learn.state import load_optimizer, save_optimizer
from spo_core.learn.surprise import flat_surprises, surprise_head
from spo_core.learn.tree_batch import TreeBatch, layout, taken
from spo_core.learn.tree_forward import TreePolicy
from spo_core.rollout.seeds import derive_seed
from spo_core.tree import RolloutTree, read_trees, write_trees

BINS = 10  # of values, for the calibration
QUARTERS = 4
StateValues = tuple[np.ndarray, ...]  # per node, float64 [tokens]: the state before each token


class CriticHandle(Protocol):
    """A critic as a run holds it: a Critic in this process, or a RankedCritic whose ranks are other processes. Critic
    documents its members."""

    params: CriticParams

    def values(self, trees: Sequence[RolloutTree]) -> list[StateValues]: ...

    def update(self, trees: Sequence[RolloutTree], iteration: int) -> dict[str, float]: ...

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


class Critic:
    """Values and trains, in step with the ranks of ``backend``, which holds the policy. Its hidden states are those of
    ``model``, which is its own and trained too, or, for ``network: head``, those of the policy, which get no gradient.

    ``model``: the first policy, with float32 weights on the backend's device; of a head it gives the size alone.
    ``probabilities``: all rewards lie in 0..1, so that values are learnt as probabilities.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        backend: Backend,
        params: CriticParams,
        learn: LearnParams,
        *,
        probabilities: bool,
        seed: int,
    ) -> None:
        self.params, self.learn, self.seed = params, learn, seed
        self.by_entropy = params.loss == "cross_entropy" or (params.loss == "auto" and probabilities)
        self.backend, size = backend, model.config.get_text_config().hidden_size
        self.own: TreePolicy | None = None
        if params.network == "copy":
            working = rounded_copy(model, learn)
            self.own = TreePolicy(working, learn.attention, checkpointing=learn.gradient_checkpointing)
            self.masters = MasterWeights(model, working)
        last = nn.Linear(size, 1)
        nn.init.zeros_(last.weight)  # the first values are all equal, whatever the seed
        nn.init.zeros_(last.bias)
        head = nn.Sequential(last)
        if self.own is None:  # a line through hidden states that are not its own says too little
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(seed, "critic"))
                head = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, size), nn.GELU(), last)
        self.trained = nn.ModuleDict({"head": head.to(backend.device)})
        if self.own is not None:
            self.trained["trunk"] = trunk(model)
        if params.surprise:
            self.trained["surprise"] = surprise_head(seed).to(backend.device)
        self.optimizer = torch.optim.AdamW(
            self.trained.parameters(),
            lr=params.learning_rate,
            betas=learn.betas,
            eps=learn.epsilon,
            weight_decay=learn.weight_decay,
        )
        self.trees: list[RolloutTree] = []

    def values(self, trees: Sequence[RolloutTree]) -> list[StateValues]:
        """Values of the states before every token of trees. Raises TrainingError where one is not finite."""
        if self.own is not None:
            self.own.eval()
        weighted = [_weighted(i, tree, _unknown(tree), 0.0) for i, tree in enumerate(trees)]
        budget = self.learn.max_tokens_per_forward
        found = iter(token_numbers(self.backend, weighted, lambda batch: self._bounded(self._outputs(batch)), budget))
        values = [tuple(next(found).astype(np.float64) for _ in tree.nodes) for tree in trees]
        if not all(np.isfinite(own).all() for tree in values for own in tree):
            raise TrainingError("the critic gives values that are not finite; lower credit.value.learning_rate")
        prompts = [np.zeros(len(tree.nodes[0].token_ids)) for tree in trees]
        return [(prompt, *own[1:]) for prompt, own in zip(prompts, values, strict=True)]

    def update(self, trees: Sequence[RolloutTree], iteration: int) -> dict[str, float]:
        """Train on these trees and those of the iterations before that ``replay`` keeps; returns the mean loss of a
        token and the mean norm of a gradient."""
        self.trees += trees
        newest = sorted({tree.iteration for tree in self.trees})[-self.params.replay :]
        self.trees = [tree for tree in self.trees if tree.iteration in newest]
        old = self.values(self.trees) if self.params.clip is not None else None
        rng = np.random.default_rng(derive_seed(self.seed, "critic", iteration))
        losses, norms = [], []
        for _ in range(self.params.epochs):
            count = min(self.params.optimizer_steps, len(self.trees))
            for chosen in np.array_split(rng.permutation(len(self.trees)), count):
                loss, norm = self._step([int(i) for i in chosen], old)
                losses.append(loss)
                norms.append(norm)
        if self.own is not None:
            self.own.eval()
        return {"loss": float(np.mean(losses)), "grad_norm": float(np.mean(norms))}

    def _step(self, chosen: Sequence[int], old: list[StateValues] | None) -> tuple[float, float]:
        """Make one optimizer step, the mean over all tokens of the chosen trees; returns loss and gradient norm."""
        tokens = sum(self.trees[i].generated_tokens for i in chosen)
        weighted = [_weighted(i, self.trees[i], state_returns(self.trees[i]), 1 / tokens) for i in sorted(chosen)]
        shares = divide(weighted, self.learn.max_tokens_per_forward, self.backend.ranks)
        if self.own is not None:
            self.own.train()
        total = torch.zeros((), dtype=torch.float64, device=self.backend.device)
        for share in shares[self.backend.rank]:
            forward_batch = share or smallest(shares)  # one times 0 keeps a rank in step with the others
            batch = layout([tree.segments for tree in forward_batch], self.backend.device)
            outputs = self._outputs(batch)
            returns = self._flat([forward_batch[i].advantages[node] for i, node in batch.order])
            weights = self._flat([forward_batch[i].policy_weights[node] for i, node in batch.order])
            before = None
            if old is not None:
                before = self._flat([old[forward_batch[i].pair][node] for i, node in batch.order])
            loss = (weights * self.token_losses(outputs, returns, before)).sum() * bool(share)
            loss.backward()
            total += loss.detach()
        for parameter in self.trained.parameters():
            if parameter.grad is not None:
                parameter.grad = self.backend.total(parameter.grad)
        mean = float(self.backend.total(total))
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained.parameters(), self.learn.max_grad_norm))
        if not math.isfinite(mean) or not math.isfinite(norm):
            raise TrainingError(f"the critic's loss is {mean}, its gradient {norm}; lower credit.value.learning_rate")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.own is not None:
            self.masters.round()
        return mean, norm

    def token_losses(self, outputs: Tensor, returns: Tensor, before: Tensor | None = None) -> Tensor:
        """Cross-entropy of returns, or half the squared error; [tokens].

        With ``before``, values before the iteration, the larger one of two squared errors counts: of the value, and of
        the value kept within ``clip`` of it (PPO's value clip, docs/reference.md 2.2).
        """
        if self.by_entropy:
            return binary_cross_entropy_with_logits(outputs, returns, reduction="none")
        errors = (outputs - returns).square()
        if before is not None:
            assert self.params.clip is not None
            kept = before + (outputs - before).clamp(-self.params.clip, self.params.clip)
            errors = torch.maximum(errors, (kept - returns).square())
        return errors / 2

    def save(self, folder: Path) -> None:
        """Write weights, optimizer and the trees that are replayed; rank 0 writes, as all hold the same."""
        if self.backend.rank:
            return
        weights = {name: p.detach().cpu().contiguous() for name, p in self.trained.named_parameters()}
        save_file(weights, folder / "critic.safetensors")
        save_optimizer(folder / "optimizer.safetensors", self.trained, self.optimizer)
        write_trees(folder / "trees.parquet", self.trees)

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote. Raises RunError where it is of another critic."""
        weights = load_file(folder / "critic.safetensors")
        for name, parameter in self.trained.named_parameters():
            if name not in weights or weights[name].shape != parameter.shape:
                raise RunError(f"{folder}: {name} does not fit the critic; this checkpoint is of another one")
            parameter.data.copy_(weights[name])
        load_optimizer(folder / "optimizer.safetensors", self.trained, self.optimizer)
        if self.own is not None:
            self.masters.round()
        self.trees = read_trees(folder / "trees.parquet")

    def _outputs(self, batch: TreeBatch) -> Tensor:
        """What the head gives for the state before each token of the batch; float32 [tokens]."""
        hidden = self.backend.hidden(batch) if self.own is None else self.own.hidden(batch)
        outputs = self.trained["head"](taken(hidden, batch.sources).float())[:, 0]
        if self.params.surprise:
            features = flat_surprises(batch.trees, batch.order).to(outputs.device)
            outputs = outputs + self.trained["surprise"](features)[:, 0]
        return outputs

    def _bounded(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid() if self.by_entropy else outputs

    def _flat(self, parts: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.float32)).to(self.backend.device)


def own_model(model: PreTrainedModel, params: CriticParams) -> PreTrainedModel:
    """What a Critic is made with, of the first policy: a copy, which must be taken before ZeRO divides the policy, or
    for a head the policy itself."""
    return copy.deepcopy(model) if params.network == "copy" else model


def state_returns(tree: RolloutTree) -> StateValues:
    """Return of the state before every token: that of its node, and before the first token that of the parent."""
    returns = tree_mean(tree)
    found = [np.full(len(node.token_ids), returns[i]) for i, node in enumerate(tree.nodes)]
    for index, node in enumerate(tree.nodes[1:], start=1):
        found[index][0] = returns[node.parent]
    return tuple(found)


def quality(trees: Sequence[RolloutTree], before: Sequence[StateValues]) -> dict[str, float]:
    """How good values are on trees that the critic was not trained on, over all their tokens.

    ``explained_variance``: 1 - mean (return - value)^2 / variance of returns; 0 is what the mean return would do, 1
    is perfect for returns without noise. ``calibration_error``: mean over tokens of |mean value - mean return| within
    BINS bins of equal width. ``error_quarter_k``: root of the mean squared difference in the k-th quarter of the
    longest response's tokens. NaN where there is nothing to tell.
    """
    values = _joined(before)
    returns = _joined([state_returns(tree) for tree in trees])
    places = _joined([_places(tree) for tree in trees])
    squares, variance = (returns - values) ** 2, float(returns.var())
    found = {"explained_variance": 1 - float(squares.mean()) / variance if variance > 0 else math.nan}
    low, width = float(values.min()), float(np.ptp(values)) or 1.0
    bins = np.minimum(((values - low) / width * BINS).astype(int), BINS - 1)
    found["calibration_error"] = sum(abs(float((values - returns)[bins == b].sum())) for b in np.unique(bins)) / len(
        values
    )
    quarter = np.minimum((places / (places.max() + 1) * QUARTERS).astype(int), QUARTERS - 1)
    for k in range(QUARTERS):
        own = squares[quarter == k]
        found[f"error_quarter_{k + 1}"] = math.sqrt(own.mean()) if len(own) else math.nan
    return found | {"value": float(values.mean()), "return": float(returns.mean())}


def _joined(parts: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """All tokens but the prompts'."""
    return np.concatenate([own for tree in parts for own in tree[1:]])


def _places(tree: RolloutTree) -> StateValues:
    ends = tree.completion_lengths
    return tuple(np.arange(ends[i] - len(n.token_ids), ends[i]) for i, n in enumerate(tree.nodes))


def _unknown(tree: RolloutTree) -> StateValues:
    return tuple(np.zeros(len(node.token_ids)) for node in tree.nodes)


def _weighted(pair: int, tree: RolloutTree, returns: StateValues, weight: float) -> WeightedTree:
    """The tree as ``splits.divide`` takes it, every sampled token in it; returns stand where advantages do."""
    sampled = tuple(np.full(len(node.token_ids), index > 0) for index, node in enumerate(tree.nodes))
    weights = tuple(np.where(mask, np.float32(weight), np.float32(0)) for mask in sampled)
    own = tuple(r.astype(np.float32) for r in returns)
    return WeightedTree(pair, tree, sampled, own, weights, tuple(np.zeros_like(w) for w in weights))
