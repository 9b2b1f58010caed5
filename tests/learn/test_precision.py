"""bfloat16 weights with float32 master weights: near float32, nothing added up or updated in eight bits."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from safetensors.torch import load_file

from spo_core.config import LearnParams
from spo_core.learn.precision import working_copy
from tests.learn.test_trainer import DEFAULTS, capture_gradients, make_trainer, relative, sample

HALF = {"dtype": "bfloat16"}


def weights(trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.backend.model.parameters()]


def moved(trainer, start) -> list[torch.Tensor]:
    return [a - b.detach() for a, b in zip(weights(trainer), start.parameters(), strict=True)]


def assert_rounded(trainer) -> None:
    backend = trainer.backend
    for master, parameter in zip(backend.model.parameters(), backend.working.parameters(), strict=True):
        assert master.dtype == torch.float32 and parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, master.bfloat16()) and master.grad is None and parameter.grad is None


def test_a_working_copy_is_rounded_but_for_its_buffers_and_leaves_the_model_alone(policy):
    policy.lm_head.weight = policy.model.embed_tokens.weight  # tied, and so it stays
    before = copy.deepcopy(policy.state_dict())
    copied = working_copy(policy, LearnParams.model_validate(DEFAULTS | HALF))
    assert all(torch.equal(v, before[k]) for k, v in policy.state_dict().items()) and policy.dtype == torch.float32
    assert copied.lm_head.weight is copied.model.embed_tokens.weight
    assert all(torch.equal(p, before[k].bfloat16()) for k, p in copied.named_parameters())
    buffers = dict(policy.named_buffers())
    assert buffers and all(torch.equal(b, buffers[k]) and b.dtype == torch.float32 for k, b in copied.named_buffers())
    for other in ({}, HALF | {"backend": {"type": "deepspeed"}}):  # ranks round for themselves
        assert working_copy(policy, LearnParams.model_validate(DEFAULTS | other)) is policy


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"kl": {"type": "penalty"}}])
def test_an_update_is_that_of_float32_within_rounding(policy, options):
    """The gradient of three optimizer steps, each of several passes, and the metrics."""
    options = {"optimizer_steps": 3, "max_tokens_per_forward": 60, "learning_rate": 1e-3} | options
    found = {}
    for dtype in ("float32", "bfloat16"):
        trainer = make_trainer(policy, dtype=dtype, **options)
        gradients = capture_gradients(trainer)
        found[dtype] = trainer.train_iteration(sample(), iteration=1), gradients, trainer
    (exact, gradients, whole), (near, rounded, half) = found.values()
    assert_rounded(half)
    for name in ("policy_loss", "grad_norm", "nll", "entropy", "ratio"):
        assert near[name] == pytest.approx(exact[name], rel=0.03, abs=1e-3)
    for a, b in zip(gradients, rounded, strict=True):
        assert 1e-4 < relative(a, b) < 0.05
    a, b = moved(whole, policy), moved(half, policy)
    assert relative(a, b) < 0.3  # Adam makes a unit step of the smallest gradient, whatever its sign


def test_gradients_of_the_passes_of_a_step_are_summed_in_float32(policy):
    """Against float64. Sums of bfloat16 would be off by about a hundredth."""
    trainer = make_trainer(policy, max_tokens_per_forward=20, **HALF)
    exact = [torch.zeros_like(p, dtype=torch.float64) for p in trainer.backend.model.parameters()]
    calls = []
    for total, parameter in zip(exact, trainer.backend.working.parameters(), strict=True):
        parameter.register_hook(lambda g, total=total: (calls.append(g.dtype), total.add_(g))[0])
    summed = capture_gradients(trainer)
    trainer.train_iteration(sample(), iteration=1)
    assert set(calls) == {torch.bfloat16} and len(calls) >= 4 * len(exact), "no step of several passes"
    assert relative(exact, [g.double() for g in summed[0]]) < 1e-6
    assert relative(exact, [g.bfloat16().double() for g in summed[0]]) > 1e-4


def test_updates_below_the_resolution_of_bfloat16_are_not_lost(policy):
    """Steps of a thousandth of the smallest change that most weights could show; as many of them as float32 makes."""
    options = {"learning_rate": 3e-7, "optimizer_steps": 6, "epochs": 5}
    whole, half = make_trainer(policy, **options), make_trainer(policy, **options, **HALF)
    before = [p.detach().clone() for p in half.backend.working.parameters()]
    for trainer in (whole, half):
        assert trainer.train_iteration(sample(), iteration=1)["optimizer_steps"] > 20
    a, b = moved(whole, policy), moved(half, policy)
    assert relative(a, b) < 0.3
    changed = sum(int((x != y).sum()) for x, y in zip(before, half.backend.working.parameters(), strict=True))
    lost = 1 - changed / sum(p.numel() for p in before)
    still = sum(int((x == 0).sum()) for x in b) / sum(x.numel() for x in b)
    assert lost > 0.9 and still < 0.2, "rounded weights hardly move, master weights do"


def test_a_gradient_that_is_not_finite_changes_nothing(policy):
    trainer = make_trainer(policy, **HALF)
    before = weights(trainer)
    trainer.backend.backward(next(trainer.backend.working.parameters()).sum() * float("inf"), last=True)
    assert not math.isfinite(trainer.backend.step(1e-3))
    assert all(map(torch.equal, before, weights(trainer)))
    assert_rounded(trainer)


def test_optimizer_files_are_those_of_float32_and_a_resume_gives_the_same_bits(policy, tmp_path):
    trainers = {}
    for dtype in ("float32", "bfloat16"):
        trainer = trainers[dtype] = make_trainer(policy, dtype=dtype)
        trainer.train_iteration(sample(seed=1), iteration=1)
        (tmp_path / dtype).mkdir()
        trainer.save(tmp_path / dtype)
    files = [load_file(tmp_path / dtype / "optimizer.safetensors") for dtype in trainers]
    whole, half = ({name: (tensor.shape, tensor.dtype) for name, tensor in file.items()} for file in files)
    assert whole == half
    middle = copy.deepcopy(trainers["bfloat16"].backend.model)
    trainers["bfloat16"].train_iteration(sample(seed=2), iteration=2)
    again = make_trainer(policy, **HALF)
    again.backend.model.load_state_dict(middle.state_dict())  # as a session does it, after the working copy was made
    again.load(tmp_path / "bfloat16")
    assert_rounded(again)
    again.train_iteration(sample(seed=2), iteration=2)
    assert all(map(torch.equal, weights(trainers["bfloat16"]), weights(again)))
    other = make_trainer(middle)  # goes on in float32
    other.load(tmp_path / "bfloat16")
    other.train_iteration(sample(seed=2), iteration=2)
    assert relative(moved(again, middle), moved(other, middle)) < 0.5  # Adam, as above; of unrelated steps more than 1
