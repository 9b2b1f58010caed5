"""What test_other_device runs in a process of its own, as a second device changes what torch takes for there."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from spo_core.config import DataParams, WarmupParams
from spo_core.learn.state import load_optimizer, save_optimizer
from spo_core.learn.supervised import Warmup, encode_demonstrations
from spo_core.problems import problem_set
from spo_core.rollout import probe as rollout_probe
from spo_core.rollout.engine import Request
from spo_core.rollout.growing import Prompt
from spo_core.rollout.probe import probe
from spo_core.rollout.transformers_engine import TransformersEngine
from tests.learn.other_device import DEVICE, OtherDevice, reads
from tests.learn.test_trainer import make_trainer, relative, sample

OPTIONS = {
    "plain": {"kl": {"type": "penalty", "where": "reward"}, "zero_advantage": "keep"},
    "several passes": {"max_tokens_per_forward": 60, "optimizer_steps": 2, "gradient_checkpointing": True},
    "bfloat16": {
        "fidelity": "reference",
        "micro_batch": 2,
        "max_ratio": 9.0,
        "importance_cap": 2.0,
        "dtype": "bfloat16",
    },
}


@pytest.fixture
def moved(policy):
    """The policy on the other device; the fixture ``policy`` stays on the CPU."""
    with OtherDevice():
        yield copy.deepcopy(policy).to(DEVICE)


def weights(model) -> list[torch.Tensor]:
    return [p.detach().cpu() for p in model.parameters()]


def test_the_device_is_told_apart(moved):
    """The tool itself: what fails on a GPU fails here."""
    hidden = torch.randn(3, 32, device=DEVICE)
    assert moved.lm_head(hidden).device == DEVICE and float(hidden.sum().cpu()) == hidden.sum().item()
    for wrong in (
        lambda: moved.lm_head(torch.randn(3, 32)),
        lambda: hidden + torch.ones(3, 1),
        lambda: hidden[torch.arange(2)].add_(torch.ones(2, 32)),
        lambda: torch.cat([hidden, torch.ones(1, 32)]),
        lambda: hidden.numpy(),
    ):
        with pytest.raises(RuntimeError):
            wrong()
    assert (hidden + torch.ones(())).device == DEVICE


@pytest.mark.parametrize("name", OPTIONS)
def test_an_update_mixes_no_devices_and_reads_little_back(policy, moved, name, tmp_path):
    options = OPTIONS[name]
    pairs = sample()
    expected = make_trainer(policy, **options)
    metrics = expected.train_iteration(pairs, iteration=1)
    trainer = make_trainer(moved, **options)
    reads.clear()
    found = trainer.train_iteration(pairs, iteration=1)
    waits = sum(reads.values())
    rough = "bfloat16" in name
    assert found == pytest.approx(metrics, rel=0.05 if rough else 1e-4, abs=1e-3 if rough else 1e-6)
    assert relative(weights(expected.backend.model), weights(trainer.backend.model)) < (0.05 if rough else 1e-4)
    assert all(p.device == DEVICE for p in trainer.backend.working.parameters())
    steps = found["optimizer_steps"]
    assert steps and waits <= 4 * steps + 2, "a step waits for its numbers, not a pass or a token"
    trainer.save(tmp_path)
    again = make_trainer(moved, **options)
    again.backend.model.load_state_dict(trainer.backend.model.state_dict())
    again.load(tmp_path)
    kept = [value for state in again.backend.optimizer.state.values() for value in state.values()]
    assert kept and all(value.device == DEVICE for value in kept), "fused kernels take the count of steps there, too"
    for one in (trainer, again):
        one.train_iteration(sample(seed=2), iteration=2)
    assert all(map(torch.equal, weights(trainer.backend.model), weights(again.backend.model)))


def test_warm_up_mixes_no_devices(policy, moved, tokenizer, tmp_path):
    problem = problem_set(DataParams(train=8, validation=1, test=1))
    rng = np.random.default_rng(0)
    rows = problem.build()["train"]
    ids, labels = encode_demonstrations(rows, problem, tokenizer, rng)
    losses = []
    for model in (copy.deepcopy(policy), moved):
        warmup = Warmup(model, WarmupParams(steps=3))
        losses.append([warmup.step(ids, labels, number) for number in range(3)])
        for optimizer in warmup.optimizers:
            save_optimizer(tmp_path / "optimizer.safetensors", model, optimizer)
            load_optimizer(tmp_path / "optimizer.safetensors", model, optimizer)
        warmup.step(ids, labels, 2)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0][0] > losses[0][-1]


@pytest.mark.parametrize("options", [{}, {"top_p": 0.8}, {"entropies": True}])
def test_sampling_mixes_no_devices_and_reads_a_few_tensors_a_step(policy, moved, options, monkeypatch):
    """Parents, children and a queue; then a probe. A made-up device knows no inference mode."""
    for owner, name in ((TransformersEngine, "step"), (rollout_probe, "_logprobs")):
        monkeypatch.setattr(owner, name, torch.no_grad()(getattr(owner, name).__wrapped__))
    sampled = []
    for model in (policy, moved):
        engine = TransformersEngine(model, stop_ids=(2,), context_length=40, max_concurrency=5, **options)
        engine.policy_changed(0)
        prompt = np.array([3, 4, 5], np.int32)
        engine.submit([Request(n, prompt, 6, seed=n, keep=True) for n in range(4)])
        done, steps = {}, 0
        reads.clear()
        while engine.busy:
            for completion in engine.step():
                done[completion.request_id] = completion
                if completion.request_id < 4:
                    grown = np.concatenate([prompt, completion.token_ids])
                    more = [
                        Request(10 + 4 * completion.request_id + k, grown, 8, k, completion.request_id) for k in (0, 1)
                    ]
                    engine.submit(more)
            steps += 1
        assert sum(reads.values()) <= 8 * steps + len(done), reads
        engine.policy_changed(1)
        gap = probe(engine, model, [Prompt("q", (3, 4))], context_length=40, temperature=1.0, seed=0)
        assert gap.mean < 1e-4
        sampled.append({key: completion.token_ids.tolist() for key, completion in done.items()})
    assert sampled[0] == sampled[1] and len(sampled[0]) == 12
