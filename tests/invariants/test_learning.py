"""Every method of the published comparison learns: short trainings of a small policy, each from the same start."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from spo_core.config import Params, load_params
from spo_core.paths import Paths
from spo_core.problems.prepare import prepare_splits
from spo_core.train.opening import open_session
from spo_core.train.steps import credit_step, rollout_step, train_step, validate
from spo_core.train.warmup import warm_up
from tests.conftest import ROOT, SHORT

pytestmark = pytest.mark.slow
# a thousand questions: the standard error of the difference is 0.02, and what is learned in these budgets 0.1 and more
COMMON = (
    *SHORT,
    *("run.threads=1", "run.validate_every=1000", "run.checkpoint_every=1000", "data.validation=1000"),
    *("policy.warmup.steps=600", "policy.warmup.batch_size=32", "learn.warmup_steps=4"),
)
LONG = pytest.mark.exhaustive  # as the others, for make test-all
FASTER, SLOWER = "learn.learning_rate=3e-4", "learn.learning_rate=1.5e-4"
CUTS = "credit.partition.interval=2"  # a response has few
TRAININGS = {
    "SPO-tree": ("short-arithmetic", "run.iterations=8"),
    "GRPO": ("grpo", "run.iterations=5", "rollout.questions=64", FASTER),
    "PPO": ("ppo", "run.iterations=7", "rollout.questions=96", "credit.value.warmup_iterations=1", FASTER),
}
MORE = {
    "RestEM": ("restem", "run.iterations=2", "rollout.questions=128", FASTER),
    "DPO-positive": ("dpo-positive", "run.iterations=6", "rollout.questions=32"),
    "PAV": ("pav", "run.iterations=6", "rollout.questions=16", CUTS),
    "DVO": (
        "dvo",
        *("run.iterations=6", "rollout.questions=24", "rollout.branch_factors=[6, 2, 2]", "credit.partition.tokens=20"),
        FASTER,
    ),
    "RLOO": ("rloo", "run.iterations=5", "rollout.questions=64", FASTER),
    "SPO-chain": ("spo-chain", "run.iterations=16", "rollout.questions=32", CUTS, SLOWER),
    "VinePPO": ("vineppo", "run.iterations=24", "rollout.questions=12", SLOWER),
    "equal parts": (
        "spo-chain",
        *("run.iterations=16", "rollout.questions=32", "credit.partition={type: equal_parts, parts: 4}"),
        SLOWER,
    ),
}


def small(preset: str | None = None, *overrides: str) -> Params:
    return load_params(ROOT, preset, (*COMMON, *overrides))


@pytest.fixture(scope="module")
def warmed(tmp_path_factory) -> Path:
    """Prepared data and a warmed-up policy, those of preset short-arithmetic."""
    root = tmp_path_factory.mktemp("warmed")
    prepare_splits(small(), Paths(root))
    warm_up(small(), Paths(root))
    return root


@pytest.mark.parametrize("method", [*TRAININGS, *(pytest.param(name, marks=LONG) for name in MORE)])
def test_it_ends_more_than_three_standard_errors_above_its_start(warmed, tmp_path, method, monkeypatch):
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "work"))
    for name in ("data", "checkpoints"):
        shutil.copytree(warmed / name, tmp_path / name)
    found = []
    with open_session(small(*(TRAININGS | MORE)[method]), Paths(tmp_path)) as session:
        found.append(validate(session, 0))
        while not session.finished:
            number = session.iteration + 1
            rollout_step(session, number)
            credit_step(session, number)
            train_step(session, number)
        found.append(validate(session, session.iteration))
    before, after = (row["eval/validation_accuracy"] for row in found)
    error = sum(row["eval/validation_standard_error"] ** 2 for row in found) ** 0.5
    assert after - before > 3 * error, (before, after, error)
