"""The best policy by validation accuracy: which it is, and that no kill loses or changes it."""

from __future__ import annotations

import json
import shutil

import pytest

from spo_core.errors import RunError
from spo_core.policy.checkpoint import load_policy
from spo_core.runs.directory import COMPLETE
from spo_core.system.files import file_digest, read_json, write_json
from spo_core.train.opening import open_session
from spo_core.train.steps import credit_step, rollout_step, train_step
from tasks.records import RunSpec
from tasks.training import publish_training
from tests.invariants.test_training_runs import prepared, same_bits, small

pytestmark = pytest.mark.slow

EVERY = ("run.validate_every=1", "run.iterations=6", "data.validation=12", "learn.learning_rate=0.01")


@pytest.fixture
def project(tmp_path, policy, tokenizer, monkeypatch):
    return prepared(tmp_path, policy, tokenizer, monkeypatch, *EVERY)


@pytest.fixture
def scripted(monkeypatch):
    """Validation accuracies as told, for iterations 1, 2, ..."""

    def script(*accuracies):
        def validate(session, iteration):
            return {"eval/validation_accuracy": accuracies[iteration - 1], "timing/validate": 0.0}

        monkeypatch.setattr("spo_core.train.steps.validate", validate)

    return script


def run_on(params, paths, stop_after=None, publish=False):
    """Train on to the end or to an iteration; the session as it was, and the weights after each iteration."""
    weights = {}
    with open_session(params, paths) as session:
        while not session.finished and session.iteration != stop_after:
            number = session.iteration + 1
            rollout_step(session, number)
            credit_step(session, number)
            train_step(session, number)
            weights[number] = {k: v.clone() for k, v in session.model.state_dict().items()}
            check_bests(session)
        if publish:
            publish_training(session, RunSpec(str(paths.root)))
    return session, weights


def check_bests(session):
    """Whatever is killed now finds the best policy of the checkpoint that it goes on from."""
    named = [state(session, number).get("best") for number in session.run.checkpoints()]
    needed = {best["iteration"] for best in named if best}
    assert needed <= bests(session)
    if session.run.latest_checkpoint() == session.iteration:
        assert needed == bests(session), "a best policy that nothing names is left over"


def bests(session):
    folder = session.run.path / "best"
    return {int(p.name) for p in folder.iterdir() if session.run.has_best(int(p.name))} if folder.is_dir() else set()


def state(session, number):
    return read_json(session.run.checkpoint(number) / "state.json")


def files(folder):
    return {p.relative_to(folder).as_posix(): file_digest(p) for p in folder.rglob("*") if p.is_file()}


def test_published_is_the_first_of_the_iterations_with_the_highest_validation_accuracy(project):
    session, weights = run_on(small(*EVERY), project, publish=True)
    rows = [json.loads(line) for line in (project.training / "metrics.jsonl").read_text().splitlines()]
    accuracies = [row["eval/validation_accuracy"] for row in rows]
    best = accuracies.index(max(accuracies)) + 1
    assert len(set(accuracies)) > 2 and best < 6, "this run shows nothing"
    published = load_policy(project.checkpoint("best"))[0].state_dict()
    assert same_bits(published, weights[best])
    assert not any(same_bits(published, other) for number, other in weights.items() if number != best)
    assert files(project.checkpoint("best")) == files(session.run.best(best) / "policy")
    assert files(project.checkpoint("best")).keys() == files(project.checkpoint("final")).keys()
    summary = read_json(project.metrics("train"))
    assert (summary["best_iteration"], summary["best_validation_accuracy"]) == (best, max(accuracies))


def test_killed_and_resumed_has_the_same_best_to_the_bit(project, tmp_path, monkeypatch):
    """Killed before any checkpoint, and after the one of iteration 3; wherever the best was found."""
    params = small(*EVERY, "run.checkpoint_every=3")
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "straight"))
    straight, _ = run_on(params, project)
    for stop_after in (2, 5):
        monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / f"{stop_after}"))
        run_on(params, project, stop_after)
        resumed, _ = run_on(params, project)
        assert resumed.best == straight.best
        assert files(resumed.run.path / "best") == files(straight.run.path / "best")
        assert state(resumed, 6) == state(straight, 6)


def test_the_first_among_equals_and_only_what_checkpoints_name_is_kept(project, scripted):
    scripted(0.25, 0.5, 0.5, 0.25, 0.75, 0.75)
    params = small(*EVERY, "run.checkpoint_every=1", "run.keep_checkpoints=2")
    seen = [bests(run_on(params, project, number)[0]) for number in range(1, 7)]
    assert seen == [{1}, {1, 2}, {2}, {2}, {2, 5}, {5}]
    session, weights = run_on(params, project, publish=True)
    assert weights == {} and read_json(project.metrics("train"))["best_iteration"] == 5 == session.best.iteration


def test_a_best_policy_of_a_lost_timeline_is_replaced_or_removed(project, scripted):
    """As when other hardware, on which nothing repeats to the bit, takes the run over after a kill."""
    params = small(*EVERY, "run.checkpoint_every=2")
    scripted(0.25, 0.25, 0.75)
    lost, _ = run_on(params, project, stop_after=3)
    assert bests(lost) == {1, 3} and lost.run.latest_checkpoint() == 2
    (lost.run.best(3) / "policy" / "model.safetensors").write_bytes(b"of the lost timeline")
    scripted(None, None, 0.5)
    replaced, weights = run_on(params, project, stop_after=3)
    assert same_bits(load_policy(replaced.run.best(3) / "policy")[0].state_dict(), weights[3])
    scripted(None, None, 0.1, 0.2)
    removed, _ = run_on(params, project, stop_after=4)
    assert removed.best.iteration == 1 and bests(removed) == {1}


def test_a_kill_while_a_best_policy_is_written_leaves_the_one_before(project, scripted, monkeypatch):
    scripted(0.25, 0.5, 0.75, 0.25, 0.25, 0.25)
    params = small(*EVERY, "run.checkpoint_every=2")
    before, _ = run_on(params, project, stop_after=2)

    def killed(model, tokenizer, folder):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("spo_core.train.checkpoints.save_policy", killed)
        run_on(params, project)
    assert bests(before) == {2}
    session, weights = run_on(params, project)
    assert session.best.iteration == 3
    assert same_bits(load_policy(session.run.best(3) / "policy")[0].state_dict(), weights[3])


def test_an_extended_run_goes_on_with_its_best(project, tmp_path, scripted, monkeypatch):
    scripted(0.25, 0.75, 0.5, 0.25)
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "a"))
    longer, _ = run_on(small(*EVERY, "run.iterations=4"), project)
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "b"))
    run_on(small(*EVERY, "run.iterations=2"), project)
    extended, _ = run_on(small(*EVERY, "run.iterations=4"), project)
    assert extended.best == longer.best and extended.best.iteration == 2
    assert files(extended.run.path / "best") == files(longer.run.path / "best")


@pytest.mark.parametrize("damage", ["deleted", "truncated"])
def test_a_lost_best_policy_is_told_and_the_checkpoint_before_mends_it(project, scripted, damage):
    scripted(0.25, 0.25, 0.25, 0.5, 0.25, 0.75)
    params = small(*EVERY, "run.checkpoint_every=2")
    session, _ = run_on(params, project, stop_after=5)
    whole = files(session.run.best(4))
    if damage == "deleted":
        shutil.rmtree(session.run.best(4))
    else:
        (session.run.best(4) / "policy" / "model.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=r"best.000004: .* missing or damaged, .*delete .*checkpoints.000004 to go on"):
        run_on(params, project)
    shutil.rmtree(session.run.checkpoint(4))
    run_on(params, project, stop_after=5)
    assert files(session.run.best(4)) == whole


def test_a_checkpoint_from_before_best_policies_has_none_yet(project, scripted):
    scripted(0.75, 0.75, 0.25, 0.5, 0.25, 0.25)
    params = small(*EVERY, "run.checkpoint_every=2")
    session, _ = run_on(params, project, stop_after=2)
    folder = session.run.checkpoint(2)
    write_json(folder / "state.json", {k: v for k, v in state(session, 2).items() if k != "best"})
    sizes = read_json(folder / COMPLETE) | {"state.json": (folder / "state.json").stat().st_size}
    write_json(folder / COMPLETE, sizes)
    shutil.rmtree(session.run.path / "best")
    with open_session(params, project) as opened:
        assert (opened.iteration, opened.best) == (2, None)
    assert run_on(params, project, publish=True)[0].best.iteration == 4


def test_a_run_told_to_end_before_it_was_ever_validated_publishes_its_last_policy(project):
    """It is measured then, as it would have been had the run been this short from the start."""
    seldom = (*EVERY, "run.validate_every=5", "run.checkpoint_every=2")
    run_on(small(*seldom), project, stop_after=3)
    run_on(small(*seldom, "run.iterations=2"), project, publish=True)
    assert files(project.checkpoint("best")) == files(project.checkpoint("final"))
    late = read_json(project.metrics("train"))
    shutil.rmtree(project.work)
    run_on(small(*seldom, "run.iterations=2"), project, publish=True)
    straight = read_json(project.metrics("train"))
    keys = ("best_iteration", "best_validation_accuracy")
    assert [late[key] for key in keys] == [straight[key] for key in keys]


def test_training_needs_no_test_split_and_learns_nothing_from_it(project):
    with_it, _ = run_on(small(*EVERY, "run.iterations=2"), project)
    (project.data("arithmetic") / "test.jsonl").unlink()
    without, _ = run_on(small(*EVERY, "run.iterations=2"), project, publish=True)
    assert with_it.run.path != without.run.path
    assert files(with_it.run.checkpoint(2) / "policy") == files(project.checkpoint("final"))
    assert files(with_it.run.best(with_it.best.iteration) / "policy") == files(project.checkpoint("best"))
