"""The warm-up's identity: whatever changes the demonstrations makes another warm-up."""

from __future__ import annotations

import pytest

from spo_core.config import load_params
from spo_core.paths import Paths
from spo_core.problems.prepare import prepare_splits
from spo_core.train.warmup import warm_up
from tests.conftest import ROOT

TINY = (
    "run.threads=1",
    "data.train=20",
    "data.validation=4",
    "data.test=4",
    "policy.init.hidden_size=16",
    "policy.init.layers=1",
    "policy.init.heads=1",
    "policy.warmup.steps=1",
    "policy.warmup.batch_size=2",
)


@pytest.mark.parametrize("option", ["careless=0.5", "words=2", "beliefs=0.3", "recovers=0.5"])
def test_other_demonstrations_of_the_same_questions_are_another_warm_up(tmp_path, monkeypatch, option):
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "work"))
    paths = Paths(tmp_path)
    for number, overrides in enumerate((TINY, TINY, (*TINY, f"data.arithmetic.{option}")), start=1):
        params = load_params(ROOT, None, overrides)
        prepare_splits(params, paths)
        warm_up(params, paths)
        assert len(list((tmp_path / "work").glob("warmup-*"))) == (1 if number < 3 else 2)
