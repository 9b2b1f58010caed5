"""What each rank of test_update runs: ``python -m tests.learn.deepspeed.update_on_ranks STORE RESULT [all]``.

Losses that are not of single tokens, restarts from the first policy, and a critic, one after the other in the same
processes; writes the errors of weights and values against plain torch, which every rank computes too.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from spo_core.config import Critic as CriticParams
from spo_core.config import LearnParams, with_fidelity
from spo_core.learn.backend import TorchBackend
from spo_core.learn.critic import Critic, own_model
from spo_core.learn.deepspeed.backend import DeepSpeedBackend, join_ranks
from spo_core.learn.trainer import Trainer
from tests.learn.deepspeed.head_on_ranks import policy as random_policy
from tests.learn.test_critic import learnable
from tests.learn.test_sequences import KEEP, KEPT, PAIRS, VALUES, sample, shaken
from tests.learn.test_trainer import DEFAULTS, of_policy, relative

LIKELIHOOD = {"type": "likelihood"}
LOSSES = {
    "likelihood, restart": {"loss": LIKELIHOOD, "restart": True},
    "dpo_positive": {"loss": PAIRS},
    "dpo_positive, restart": {"loss": PAIRS, "restart": True},
    "dvo": {"loss": VALUES},
}
COMMON = {"learning_rate": 1e-3, "max_tokens_per_forward": 60, "optimizer_steps": 2}
FEW = [
    ("likelihood, restart", 1),
    ("dpo_positive", 2),
    ("dpo_positive, restart", 3),
    ("dvo", 0),
    ("copy", 1),
    ("head", 3),
]
ALL = [(name, stage) for name in (*LOSSES, "copy", "head") for stage in range(4)]


def params_of(ranks: int, stage: int, **options) -> LearnParams:
    backend = {"type": "deepspeed", "ranks": ranks, "zero_stage": stage}
    return LearnParams.model_validate(with_fidelity(DEFAULTS | COMMON | options | {"backend": backend}))


class Pair:
    """A trainer on these ranks and one in plain torch, of equal policies and equal references."""

    def __init__(self, params: LearnParams, folder: Path, *, on_ranks: bool = True) -> None:
        first = random_policy(False)
        reference = shaken(first) if params.needs_reference and not params.restart else first
        frozen = copy.deepcopy(reference).eval().requires_grad_(False) if params.needs_reference else None
        make = DeepSpeedBackend if on_ranks else TorchBackend
        self.model, self.folder = first, folder
        self.backend = make(first, frozen, params)
        self.trainer = Trainer(self.backend, params, temperature=1.0, seed=0)

    def weights(self) -> list[torch.Tensor]:
        """Float32 weights; with ranks by way of the file that the flow reads."""
        if isinstance(self.backend, TorchBackend):
            return [p.detach().clone() for p in self.model.parameters()]
        self.backend.save_weights(self.folder / "weights")
        torch.distributed.barrier()
        found = load_file(self.folder / "weights")
        torch.distributed.barrier()
        return [found[name] for name, _ in self.model.named_parameters()]


@contextmanager
def pair(params: LearnParams, folder: Path):
    found = Pair(params, folder)
    yield found, Pair(params, folder, on_ranks=False)
    found.backend.engine.destroy()
    gc.collect()


def loss_case(options: dict, params: LearnParams, folder: Path) -> dict[str, float]:
    """Two iterations; then the second again, from a checkpoint of the first."""
    kept = options["loss"] is LIKELIHOOD
    start = random_policy(False)
    data = [of_policy(start, sample(seed=seed, credit=KEPT) if kept else sample(seed=seed)) for seed in (1, 2)]
    saved = folder / "saved"
    saved.mkdir(exist_ok=True)
    with pair(params, folder) as (ours, plain):
        metrics, found = [], {}
        for number, pairs in enumerate(data, start=1):
            again = [(replace(tree, policy_version=2 * (number - 1)), credit) for tree, credit in pairs]
            metrics.append([side.trainer.train_iteration(again, iteration=number) for side in (ours, plain)])
            found[f"weights {number}"] = relative(plain.weights(), ours.weights())
            if number == 1:
                ours.trainer.save(saved)
                middle = folder / "middle"
                ours.backend.save_weights(middle)
                torch.distributed.barrier()
        straight = ours.weights()
        found["moved"] = relative(list(start.parameters()), straight)
        ours.backend.load_weights(middle)
        ours.trainer.load(saved)
        ours.trainer.train_iteration(again, iteration=2)
        found["resumed"] = float(not all(map(torch.equal, straight, ours.weights())))
        found["steps"] = ours.trainer.step
        for one, other in metrics:
            assert one.keys() == other.keys()
            for name in one.keys() - {"forwarded_tokens"}:
                difference = abs(one[name] - other[name]) / max(1e-3, abs(other[name]))
                found[f"metric {name}"] = max(difference, found.get(f"metric {name}", 0.0))
        return found


def critic_case(network: str, params: LearnParams, folder: Path) -> dict[str, float]:
    """Values and updates between updates of the policy; then the last again, from a checkpoint."""
    options = {"network": network, "learning_rate": 3e-3, "loss": "squared", "clip": 0.2, "optimizer_steps": 3}
    chosen = CriticParams.model_validate({"type": "critic"} | options)
    saved = folder / "critic"
    saved.mkdir(exist_ok=True)

    def critic_of(side: Pair, model) -> Critic:
        return Critic(model, side.backend, chosen, params, probabilities=True, seed=0)

    own = own_model(random_policy(False), chosen)  # a copy is taken before ZeRO divides the policy
    with pair(params, folder) as (ours, plain):
        first, other = critic_of(ours, own), critic_of(plain, own_model(plain.model, chosen))
        found: dict[str, float] = {}
        for number in (1, 2, 3):
            pairs = of_policy(random_policy(False), sample(seed=number))
            trees = learnable(number, number)
            for side in (ours, plain):
                side.trainer.train_iteration(pairs, iteration=number)
            if number == 3:
                first.save(saved)
                torch.distributed.barrier()
            metrics = [critic.update(trees, number) for critic in (first, other)]
            for name in metrics[0]:
                found[name] = max(found.get(name, 0), abs(metrics[0][name] - metrics[1][name]))
        straight = _weights(first)
        found["weights"] = relative(_weights(other), straight)
        found["moved"] = relative(_weights(critic_of(plain, own_model(random_policy(False), chosen))), straight)
        values = [np.concatenate([own for tree in c.values(learnable(9)) for own in tree]) for c in (first, other)]
        found["values"] = float(np.abs(values[0] - values[1]).max())
        found["spread"] = float(values[0].std())
        again = critic_of(ours, own_model(random_policy(False), chosen))
        again.load(saved)
        again.update(trees, 3)
        found["resumed"] = float(not all(map(torch.equal, straight, _weights(again))))
        return found


def _weights(critic: Critic) -> list[torch.Tensor]:
    return [p.detach().clone() for p in critic.trained.parameters()]


def main(store: Path, result: Path, cases: Sequence[tuple[str, int]]) -> None:
    torch.set_num_threads(1)
    ranks = int(os.environ["WORLD_SIZE"])
    join_ranks(store)
    found = {}
    for name, stage in cases:
        options = LOSSES.get(name)
        if options is None:
            found[f"{name}, stage {stage}"] = critic_case(name, params_of(ranks, stage), store.parent)
        else:
            params = params_of(ranks, stage, **KEEP, **options)
            found[f"{name}, stage {stage}"] = loss_case(options, params, store.parent)
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), ALL if sys.argv[3:] else FEW)
