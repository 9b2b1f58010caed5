"""Two ranks, started by DeepSpeed's own launcher, against one device; and that no process outlives its training."""

from __future__ import annotations

import copy
import importlib.util
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from spo_core.config import LearnParams, LoraParams, with_fidelity
from spo_core.errors import ConfigError, TrainingError
from spo_core.learn.backend import TorchBackend
from spo_core.learn.deepspeed.state import _part
from spo_core.learn.deepspeed.trainer import DeepSpeedTrainer
from spo_core.learn.loss import LossInputs, ppo_clip
from spo_core.learn.objective import counted_masks
from spo_core.learn.trainer import Trainer
from spo_core.learn.tree_batch import TrainedSegments
from spo_core.policy.checkpoint import trained_policy
from spo_core.system.plugins import open_project, project
from tests.conftest import ROOT
from tests.learn.naive import flat_logprobs
from tests.learn.test_trainer import DEFAULTS, flat, make_trainer, relative, sample
from tests.system.test_processes import gone, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra deepspeed"),
]
SMALL = {"learning_rate": 1e-3, "max_grad_norm": 0.05, "max_tokens_per_forward": 60}  # clipped, in several passes
KL = {"kl": {"type": "penalty", "coefficient": 0.3}, "importance_cap": 2.0}
CASES = {
    "0": ({"zero_stage": 0}, {}),
    "1": ({"zero_stage": 1}, {}),
    "2-offload": ({"zero_stage": 2, "offload_optimizer": True}, KL),
    "3-checkpointing": ({"zero_stage": 3}, {"gradient_checkpointing": True}),
}


def params_of(backend: dict, **options) -> LearnParams:
    more = {"backend": {"type": "deepspeed", "ranks": 2} | backend}
    return LearnParams.model_validate(with_fidelity(DEFAULTS | SMALL | options | more))


def flow_command(params: LearnParams) -> list[str]:
    """A process that has ranks, says when they are ready, and waits to be killed."""
    script = f"""
import sys; from pathlib import Path
from spo_core.config import LearnParams
from spo_core.learn.deepspeed.trainer import DeepSpeedTrainer
from spo_core.policy.checkpoint import load_policy
params = LearnParams.model_validate_json({params.model_dump_json()!r})
here = Path("policy")
trainer = DeepSpeedTrainer(
    load_policy(here)[0],
    params,
    policy=here,
    reference=None,
    context_length=64,
    temperature=1.0,
    seed=0,
    log=Path("log"),
)
print("ready", flush=True); sys.stdin.read()
"""
    return [sys.executable, "-c", script]


@contextmanager
def ranks_of(folder, params, lora=None, critic=None):
    """A trainer with its own copy of the policy; afterwards all of its processes are gone."""
    where = folder / "policy"
    reference = where if params.kl.type == "penalty" and lora is None else None
    trainer = DeepSpeedTrainer(
        trained_policy(where, lora, seed=0, dtype=params.dtype)[0],
        params,
        policy=where,
        reference=reference,
        lora=lora,
        critic=critic,
        context_length=64,
        temperature=1.0,
        seed=0,
        log=folder / "log",
    )
    pids = processes_of(trainer)
    assert len(pids) == 4, "the launcher, what it starts on this machine, and two ranks"
    try:
        yield trainer
    finally:
        trainer.close()
        until(lambda: all(map(gone, pids)))


def processes_of(trainer) -> list[int]:
    import psutil

    launcher = psutil.Process(trainer._ranks._process.pid)
    return [launcher.pid, *(p.pid for p in launcher.children(recursive=True))]


def weights(learner) -> list[torch.Tensor]:
    model = learner.model if isinstance(learner, DeepSpeedTrainer) else learner.backend.model
    return [p.detach().clone() for p in model.parameters()]


def set_weights(model, values) -> None:
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(value)


def scaled(pairs, factor: float):
    return [(t, replace(c, advantages=tuple(a * np.float32(factor) for a in c.advantages))) for t, c in pairs]


def saved(learner, folder):
    folder.mkdir()
    learner.save(folder)
    return load_file(folder / "optimizer.safetensors")


def clipped_gradient(policy, pairs, params) -> dict[str, torch.Tensor]:
    """That of one padded sequence a segment, plain torch."""
    model = copy.deepcopy(policy)
    masks = [counted_masks(c, params) for _, c in pairs]
    items = [TrainedSegments(t, m) for (t, _), m in zip(pairs, masks, strict=True)]
    logprobs, _ = flat_logprobs(model, items, 1.0)
    old = flat(pairs, masks, lambda t, c, i: t.nodes[i].logprobs)
    advantages = flat(pairs, masks, lambda t, c, i: c.advantages[i])
    (
        ppo_clip(LossInputs(logprobs, old, advantages, torch.arange(len(logprobs))), params).loss.sum() / len(logprobs)
    ).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), params.max_grad_norm)
    assert norm > params.max_grad_norm, "nothing was clipped: the test shows less"
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("case", [pytest.param(name, marks=[pytest.mark.exhaustive] * (name == "0")) for name in CASES])
def test_two_ranks_train_as_one_device(policy, folder, case):
    """The same gradient as flat sequences, the same weights and metrics after every iteration; checkpoints are
    exchanged both ways; a gradient that is not finite arrives as TrainingError."""
    backend, options = CASES[case]
    params = params_of(backend, **options)
    one = make_trainer(policy, **SMALL, **options)
    seen = []
    with ranks_of(folder, params) as two:
        for i in (1, 2):
            expected = one.train_iteration(sample(seed=i), iteration=i)
            found = two.train_iteration(sample(seed=i), iteration=i, progress=lambda *p: seen.append(p))
            assert expected.pop("forwarded_tokens") <= found.pop("forwarded_tokens")
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-7)
            assert relative(weights(one), weights(two)) <= 1e-6
            if i == 1:
                ours, theirs = saved(one, folder / "one"), saved(two, folder / "two")
                middle = weights(one), weights(two)
                assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
                if not options.get("kl"):  # Adam's first running mean is a tenth of the gradient
                    gradient = clipped_gradient(policy, sample(seed=1), params)
                    mean = [theirs[f"{name}/exp_avg"] for name in gradient]
                    assert relative([0.1 * g for g in gradient.values()], mean) <= 1e-5
        assert (two.step, two.learning_rate, seen) == (one.step, one.learning_rate, [(1, 1)] * 2)
        straight = weights(two)
        moved = relative(middle[0], straight)
        assert moved > 1e-4, "nothing was trained: the test shows nothing"

        for checkpoint, start in (("one", middle[0]), ("two", middle[1])):
            set_weights(two.model, start)
            two.load(folder / checkpoint)
            two.train_iteration(sample(seed=2), iteration=2)
            assert relative(straight, weights(two)) <= 1e-6
        assert all(map(torch.equal, straight, weights(two))), "its own checkpoint gives the same bits"
        one = make_trainer(policy, **SMALL, **options)
        set_weights(one.backend.model, middle[1])
        one.load(folder / "two")
        one.train_iteration(sample(seed=2), iteration=2)
        assert relative(straight, weights(one)) <= 1e-6

        # stage 3 takes the norm in float64, so that only the loss can be beyond what is finite
        factor, what = (np.nan, "loss is nan") if case.startswith("3") else (1e30, "gradient norm is inf")
        with pytest.raises(TrainingError, match=rf"^{what} at optimizer step 2"):
            two.train_iteration(scaled(sample(), factor), iteration=3)
        with pytest.raises(TrainingError, match="have ended"):
            two.restart_learning_rate()
    assert all(map(torch.equal, straight, weights(two)))


@pytest.mark.parametrize("stage", [1, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_ranks_train_adapters_as_one_device(policy, folder, stage):
    """Adapters alone go to and fro, the reference policy is the model without them, a checkpoint gives its own bits."""
    pytest.importorskip("peft")
    lora = LoraParams(rank=3, alpha=6)
    params = params_of({"zero_stage": stage}, kl=KL["kl"])
    one, _ = trained_policy(folder / "policy", lora, seed=0, dtype="float32")
    alone = Trainer(TorchBackend(one, None, params), params, temperature=1.0, seed=0)
    with ranks_of(folder, params, lora) as two:
        for i in (1, 2):
            expected, found = (t.train_iteration(sample(seed=i), iteration=i) for t in (alone, two))
            assert found.pop("forwarded_tokens") and expected.pop("forwarded_tokens")
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-7)
            assert relative(weights(alone), weights(two)) <= 1e-6
            if i == 1:
                theirs, middle = saved(two, folder / "two"), weights(two)
                assert len(theirs) == 3 * 28 and all(".lora_" in name for name in theirs)
                assert {k: v.shape for k, v in saved(alone, folder / "one").items()} == {
                    k: v.shape for k, v in theirs.items()
                }
        straight = weights(two)
        assert found["kl"] > 0 and relative(middle, straight) > 1e-6
        set_weights(two.model, middle)
        two.load(folder / "two")
        two.train_iteration(sample(seed=2), iteration=2)
        assert all(map(torch.equal, straight, weights(two)))


@pytest.mark.exhaustive
def test_bfloat16_stays_near_and_keeps_float32_weights(policy, folder):
    params = params_of({"zero_stage": 3}, dtype="bfloat16", **KL)
    one = make_trainer(policy, **SMALL, **KL)
    with ranks_of(folder, params) as two:
        expected, found = (t.train_iteration(sample(seed=1), iteration=1) for t in (one, two))
        half = make_trainer(policy, **SMALL, **KL, dtype="bfloat16")  # one process, without DeepSpeed
        near = half.train_iteration(sample(seed=1), iteration=1)
        for name in ("policy_loss", "grad_norm", "nll", "entropy"):
            assert found[name] == pytest.approx(expected[name], rel=0.05)
            assert found[name] == pytest.approx(near[name], rel=0.01)
        middle, start = weights(two), list(policy.parameters())
        ways = [[a - b for a, b in zip(w, start, strict=True)] for w in (middle, weights(half), weights(one))]
        assert relative(ways[0], ways[1]) < min(0.1, relative(ways[0], ways[2])), "nearer to each other than to float32"
        assert relative(middle, [w.bfloat16().float() for w in middle]) > 1e-4, "digits beyond bfloat16 are lost"
        saved(two, folder / "two")
        two.train_iteration(sample(seed=2), iteration=2)
        straight = weights(two)
        set_weights(two.model, middle)
        two.load(folder / "two")
        two.train_iteration(sample(seed=2), iteration=2)
        assert all(map(torch.equal, straight, weights(two)))
        saved(half, folder / "half")
        for learner, checkpoint in ((two, "half"), (half, "two")):  # each goes on from what the other saved
            set_weights(learner.model if learner is two else learner.backend.model, middle)
            learner.load(folder / checkpoint)
            learner.train_iteration(sample(seed=2), iteration=2)
        moved = [a - b for a, b in zip(straight, middle, strict=True)]
        for learner in (two, half):
            assert relative(moved, [a - b for a, b in zip(weights(learner), middle, strict=True)]) < 0.2
        with pytest.raises(TrainingError, match=r"^loss is nan"):
            two.train_iteration(scaled(sample(), np.nan), iteration=3)


def test_stage_3_fills_up_what_ranks_do_not_divide_evenly(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    parameter = SimpleNamespace(ds_tensor=torch.zeros(4))
    assert _part(parameter, torch.arange(7.0)).tolist() == [4, 5, 6, 0]


def test_a_killed_rank_is_noticed(policy, folder):
    with ranks_of(folder, params_of({})) as two:
        os.kill(processes_of(two)[-1], signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(TrainingError, match=r"(ended|failed): .*log\)"):
            two.train_iteration(sample(), iteration=1)
        assert time.monotonic() - began < 15


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_outlives_a_killed_flow(policy, folder):
    import psutil

    with subprocess.Popen(
        flow_command(params_of({})),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as flow:
        try:
            assert b"ready" in flow.stdout.readline()
            pids = [p.pid for p in psutil.Process(flow.pid).children(recursive=True)]
        finally:
            flow.kill()
    assert len(pids) >= 4
    until(lambda: all(map(gone, pids)))


def test_without_the_extra_it_says_so(policy, folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[deepspeed\]'"), ranks_of(folder, params_of({})):
        pass


LOSS = """# another loss than the built-in one, with a metric of its own
from spo_core.learn.loss import LossOutputs

def shared(inputs, options):
    weight = (inputs.logprobs.detach() - inputs.old_logprobs).exp().clamp(max=options["cap"])
    return LossOutputs(-weight * inputs.advantages * inputs.logprobs, {"weight": weight})
"""


@pytest.fixture
def own_loss(folder, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (folder / "mine.py").write_text(LOSS)
    before = project()
    open_project(folder)
    yield {"loss": {"type": "custom", "path": "mine:shared", "options": {"cap": 2.0}}}
    open_project(before)


@pytest.mark.exhaustive
def test_ranks_train_with_a_loss_of_the_projects_own(policy, folder, own_loss):
    """Its gradient and its metrics, summed over ranks that have different tokens, are those of one device."""
    options = SMALL | own_loss
    pairs = sample(3)
    alone = make_trainer(copy.deepcopy(policy), **options)
    expected = alone.train_iteration(pairs, iteration=1)
    plain = make_trainer(copy.deepcopy(policy), **SMALL)
    plain.train_iteration(pairs, iteration=1)
    assert relative(weights(alone), weights(plain)) > 1e-4, "the losses do the same: the test shows nothing"
    with ranks_of(folder, params_of({}, **own_loss)) as ranks:
        found = ranks.train_iteration(pairs, iteration=1)
        assert "weight" in found and "clip_fraction" not in found
        assert found["weight"] == pytest.approx(expected["weight"], rel=1e-4)
        assert found["policy_loss"] == pytest.approx(expected["policy_loss"], rel=1e-3, abs=1e-6)
        assert relative(weights(ranks), weights(alone)) < 1e-3


def test_what_a_loss_raises_on_a_rank_is_told(policy, folder, own_loss):
    failing = LOSS.replace("    weight =", "    assert len(inputs.logprobs) == 4, 'at odds'\n    weight =")
    (folder / "mine.py").write_text(failing)
    told = pytest.raises(TrainingError, match=r"learn\.loss: mine:shared failed with AssertionError: at odds")
    with ranks_of(folder, params_of({}, **own_loss)) as ranks, told:
        ranks.train_iteration(sample(3), iteration=1)
