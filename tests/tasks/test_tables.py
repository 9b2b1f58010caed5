"""The table of trees that trackers are told: an iteration under way from memory, earlier ones from their folder."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from spo_core.train.opening import open_session
from spo_core.train.steps import credit_step, rollout_step, train_step
from tasks import tracking
from tests.invariants.test_training_runs import prepared, small


@pytest.mark.parametrize("preset", [None, "spo-chain"])
def test_no_file_is_read_for_the_iteration_under_way(preset, tmp_path, policy, tokenizer, monkeypatch):
    paths = prepared(tmp_path, policy, tokenizer, monkeypatch)
    given = []

    def trackers(params, directory, root, name, rows, trees):
        given.append(trees)
        return nullcontext(SimpleNamespace(log=lambda row: None, where=None))

    monkeypatch.setattr(tracking, "Trackers", trackers)
    monkeypatch.setattr(tracking, "record_attempt", lambda *_: None)
    monkeypatch.setattr(tracking, "caller", lambda _: None)
    params = small("rollout.branch_factors=[3]" if preset else "rollout.questions=4", preset=preset)
    spec = SimpleNamespace(params=params, paths=paths, run_name=None)
    with open_session(params, paths) as session, tracking.training_trackers(spec, session):
        for step in (rollout_step, credit_step, train_step):
            step(session, 1)
        (trees,) = given
        with monkeypatch.context() as patched:
            patched.setattr(tracking, "read_pairs", None)
            held = trees(1)
        session.under_way = None  # as when the run goes on from a checkpoint
        assert held and trees(1) == held
