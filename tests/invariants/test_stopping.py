"""Where a run ends by itself: by validations, time and tokens; and that it goes on once the limit is raised."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_core.errors import RunError
from spo_core.policy.checkpoint import load_policy
from spo_core.train.checkpoints import keep_if_best
from spo_core.train.opening import open_session
from spo_core.train.session import Session
from tasks.records import RunSpec
from tasks.training import publish_training, say_why_finished
from tests.invariants.test_best_checkpoint import EVERY, run_on
from tests.invariants.test_training_runs import prepared, same_bits, small

pytestmark = pytest.mark.slow

PARAMS = small()


@pytest.fixture
def project(tmp_path, policy, tokenizer, monkeypatch):
    return prepared(tmp_path, policy, tokenizer, monkeypatch, *EVERY)


def bare_session(**limits: float) -> Session:
    """A session that counts, and holds nothing."""
    run: Any = SimpleNamespace(save_best=lambda number, write: None)
    nothing: Any = None
    params = PARAMS.model_copy(update={"run": PARAMS.run.model_copy(update=limits | {"iterations": 99})})
    return Session(params, run, *[nothing] * 10)


def test_patience_counts_nothing_while_only_a_critic_is_trained():
    session = bare_session(patience=2)
    session.critic = SimpleNamespace(params=SimpleNamespace(warmup_iterations=4))
    rows = []
    for number in range(1, 8):
        session.iteration = number
        keep_if_best(session, 0.3)
        rows.append({"iteration": number, "timing/run": 1.0, "eval/validation_accuracy": 0.3})
        again = bare_session(patience=2)
        again.critic, again.best, again.iteration = session.critic, session.best, number
        again.recall(rows)
        assert session.unraised == again.unraised == max(0, number - 4)
        assert session.finished == (number >= 6)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([None, 0.1, 0.2, 0.3]), min_size=1, max_size=20),
    st.integers(1, 4),
    st.integers(0, 19),
)
def test_patience_counts_validations_since_the_best_and_survives_a_resume(accuracies, patience, resumed):
    """Against a plain recount of all accuracies so far; None is an iteration without validation."""
    session = bare_session(patience=patience)
    rows: list[dict[str, Any]] = []
    for number, accuracy in enumerate(accuracies, start=1):
        session.iteration = number
        session.tick()
        rows.append({"iteration": number, "timing/run": session.seconds})
        if accuracy is not None:
            rows[-1]["eval/validation_accuracy"] = accuracy
            keep_if_best(session, accuracy)
        if number == resumed:
            again = bare_session(patience=patience)
            again.best, again.iteration = session.best, number
            again.recall(rows)
            assert (again.seconds, again.last_seconds) == (session.seconds, pytest.approx(session.last_seconds))
            session = again
        seen = [a for a in accuracies[:number] if a is not None]
        since = len(seen) - 1 - seen.index(max(seen)) if seen else 0
        assert session.unraised == since and session.finished == (since >= patience)


@pytest.mark.parametrize("seconds", [[3.0, 2.0, 2.0, 5.0], [1.0, 1.0, 1.0], [20.0], [4.0, 7.0]])
def test_no_iteration_begins_that_would_end_too_late(monkeypatch, seconds):
    now = [100.0]
    monkeypatch.setattr("spo_core.train.session.time.monotonic", lambda: now[0])
    session = bare_session(max_seconds=10.0)
    session.clock = now[0]
    for number, spent in enumerate(seconds, start=1):
        assert not session.finished, "whatever the limit, an iteration is made"
        now[0] += spent
        session.iteration = number
        session.tick()
        assert session.finished == (sum(seconds[:number]) + spent > 10)
        if session.finished:
            assert session.why_finished.startswith("run.max_seconds 10: ")
            return


def test_a_run_that_stopped_publishes_the_best_and_goes_on_as_if_it_had_not(project, tmp_path, monkeypatch, caplog):
    """Best after iteration 2, stopped after 4; with the limit raised it ends at the bits of a run without one."""
    accuracies = (0.1, 0.3, 0.3, 0.2, 0.4, 0.1)
    told = lambda session, number: {"eval/validation_accuracy": accuracies[number - 1]}  # noqa: E731
    monkeypatch.setattr("spo_core.train.steps.validate", told)
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "a"))
    _, straight = run_on(small(*EVERY), project)
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "b"))
    stopped, weights = run_on(small(*EVERY, "run.patience=2"), project, publish=True)
    assert stopped.iteration == 4 and same_bits(weights[4], straight[4])
    best = load_policy(project.checkpoint("best"))[0].state_dict()
    final = load_policy(project.checkpoint("final"))[0].state_dict()
    assert same_bits(best, straight[2]) and same_bits(final, straight[4])
    say_why_finished(stopped)
    assert "ends after iteration 4 by run.patience 2: no validation was better than that of iteration 2" in caplog.text
    again, none = run_on(small(*EVERY, "run.patience=2"), project)
    assert again.iteration == 4 and not none, "the same command does nothing more"
    raised, more = run_on(small(*EVERY, "run.patience=3"), project)
    assert raised.iteration == 6 and same_bits(more[6], straight[6])
    assert raised.run.path == stopped.run.path and raised.best.iteration == 5


def test_a_budget_of_tokens_can_be_raised(project, tmp_path, monkeypatch):
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "a"))
    _, straight = run_on(small("run.iterations=3"), project)
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "b"))
    short, _ = run_on(small("run.iterations=3", "run.max_generated_tokens=1"), project)
    assert short.iteration == 1 and short.why_finished.startswith("run.max_generated_tokens 1: ")
    long, weights = run_on(small("run.iterations=3"), project)
    assert long.iteration == 3 and same_bits(weights[3], straight[3])
    with pytest.raises(RunError, match=r"already went on beyond run\.max_generated_tokens 1, .* raise it"):
        run_on(small("run.iterations=3", "run.max_generated_tokens=1"), project)
    with open_session(small("run.iterations=3"), project) as session:
        assert session.finished
        publish_training(session, RunSpec(str(project.root)))
