"""Training with vLLM in the process: interrupted and resumed it ends with the same bits."""

from __future__ import annotations

import pytest

from spo_core.config import load_params
from spo_core.paths import Paths
from spo_core.problems.prepare import prepare_splits
from spo_core.system.files import folder_digest
from spo_core.train.opening import open_session
from spo_core.train.steps import credit_step, rollout_step, train_step
from spo_core.train.warmup import warm_up
from tests.conftest import ROOT, SHORT
from tests.rollout.vllm.case import needs_vllm

pytestmark = [*needs_vllm, pytest.mark.exhaustive]
SMALL = (
    *SHORT,
    "run.threads=1",
    "run.checkpoint_every=1",
    "run.validate_every=1",
    "data.train=300",
    "data.validation=20",
    "data.test=12",
    "policy.warmup.steps=120",
    "policy.warmup.batch_size=8",
    "rollout.questions=4",
    "rollout.branch_factors=[3, 2, 2]",
    "rollout.engine={type: vllm, cache_gib: 0.25}",
    "learn.optimizer_steps=2",
)


def train(paths: Paths, name: str, iterations: int) -> list[dict]:
    params = load_params(ROOT, None, (*SMALL, f"run.iterations={iterations}", f"run.name={name}"))
    with open_session(params, paths) as session:
        while not session.finished:
            iteration = session.iteration + 1
            rollout_step(session, iteration)
            credit_step(session, iteration)
            train_step(session, iteration)
        return session.run.read_metrics()


def test_a_resumed_run_has_the_bits_of_a_straight_one(tmp_path):
    paths = Paths(tmp_path)
    params = load_params(ROOT, None, SMALL)
    prepare_splits(params, paths)
    warm_up(params, paths)
    straight = train(paths, "straight", 3)
    assert len(train(paths, "resumed", 1)) == 1
    resumed = train(paths, "resumed", 3)
    weights = [
        folder_digest(paths.work / f"train-{name}/checkpoints/000003/policy") for name in ("straight", "resumed")
    ]
    assert weights[0] == weights[1]
    for one, other in zip(straight, resumed, strict=True):
        assert {k: v for k, v in one.items() if "timing" not in k} == {
            k: v for k, v in other.items() if "timing" not in k
        }
        assert one["sync/logprob_gap_max"] < 1e-3 and "eval/validation_accuracy" in one
