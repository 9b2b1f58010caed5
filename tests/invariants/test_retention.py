"""Retention: every k-th checkpoint, the last n and the best; nothing goes before its successor is complete.

Stated over every point at which a process can be killed, or the disk can be full, while a checkpoint is saved.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from spo_core.errors import RunError, SPOError
from spo_core.policy.checkpoint import load_policy
from spo_core.runs.directory import COMPLETE, ROLLOUTS, RunDirectory, open_run
from spo_core.system.files import read_json
from spo_core.train.identity import check_training
from spo_core.train.opening import open_session
from spo_core.train.steps import credit_step, keep_step, rollout_step, train_step
from tests.invariants.test_best_checkpoint import bests, check_bests, files, run_on, state
from tests.invariants.test_training_runs import prepared, same_bits, small

pytestmark = pytest.mark.slow

CREATES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
MILESTONES = ("run.iterations=6", "run.checkpoint_every=4", "run.keep_checkpoints=1", "run.validate_every=1")


@pytest.fixture
def project(tmp_path, policy, tokenizer, monkeypatch):
    return prepared(tmp_path, policy, tokenizer, monkeypatch)


def write(number: int, timeline: str = "") -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        for name in ("policy", "trainer"):
            (folder / name).mkdir()
            (folder / name / "weights").write_text(f"{name} of {number}{timeline}")
        (folder / "state.json").write_text("{}")

    return fill


def content(run: RunDirectory) -> dict[str, str]:
    """Everything in the folder of checkpoints, hidden folders too."""
    folder = run.path / "checkpoints"
    return {p.relative_to(folder).as_posix(): p.read_text() if p.is_file() else "" for p in folder.rglob("*")}


@dataclass(frozen=True)
class Saving:
    """What is there before, and the checkpoint that is saved then."""

    numbers: tuple[int, ...]
    number: int
    keep: int
    before: int | None = None
    after: int | None = None
    damaged: tuple[int, ...] = ()

    def prepare(self, path: Path) -> RunDirectory:
        run = RunDirectory(path)
        for number in self.numbers:
            run.save_checkpoint(number, write(number, " before"), self.keep, self.before)
        for number in self.damaged:
            (run.checkpoint(number) / "policy" / "weights").write_text("")
        return run

    def save(self, run: RunDirectory) -> None:
        run.save_checkpoint(self.number, write(self.number), self.keep, self.after)


SAVINGS = {
    "the last one": Saving((5,), 10, keep=1),
    "the last two": Saving((5, 10, 15), 20, keep=2),
    "milestones": Saving((2, 4, 6, 8, 10), 12, keep=1, before=4, after=4),
    "no milestones any more": Saving((2, 4, 6, 8), 9, keep=1, before=4, after=None),
    "other milestones": Saving((3, 6, 8, 9), 10, keep=2, before=4, after=3),
    "over a damaged one": Saving((5, 10), 10, keep=2, damaged=(10,)),
    "past a damaged one": Saving((5, 10), 12, keep=2, damaged=(5,)),
}


def in_child(act: Callable[[], None], nth: int, stop: Callable[[], None], once: bool) -> int:
    """``act`` in a forked process, with ``stop`` called before its nth change to the disk, or all from there on.

    Returns its exit status: 0 where it never came so far, 1 for an error.
    """
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal seen
            creates = event == "os.mkdir" or (event == "open" and (arguments[2] or 0) & CREATES)
            if creates or (once and event in ("os.rename", "os.remove", "os.rmdir", "os.link")):
                seen += 1
                if seen == nth or (seen > nth and not once):
                    stop()

        status = 2
        try:
            sys.addaudithook(hook)
            act()
            status = 0
        except (OSError, SPOError):
            status = 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def disk_full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("saving", SAVINGS.values(), ids=SAVINGS.keys())
@pytest.mark.parametrize(("stop", "status"), [(killed, -signal.SIGKILL), (disk_full, 1)], ids=["killed", "full"])
def test_a_complete_checkpoint_is_there_wherever_saving_stops(tmp_path, saving, stop, status):
    before, straight = saving.prepare(tmp_path / "before"), RunDirectory(tmp_path / "straight")
    had, milestones = before.checkpoints(), set(before.milestones(None))
    shutil.copytree(before.path, straight.path)
    saving.save(straight)
    expected = content(straight)
    for nth in range(1, 100):
        run = RunDirectory(tmp_path / f"{nth}")
        shutil.copytree(before.path, run.path)
        whole = {number: files(run.checkpoint(number)) for number in had}
        ended = in_child(lambda run=run: saving.save(run), nth, stop, once=stop is killed)
        there = run.checkpoints()
        assert there[-1] >= had[-1] and set(there) <= {*had, saving.number}
        assert len(there) >= min(saving.keep, len(had)), "one went before its successor was complete"
        assert milestones <= set(there)
        assert all(files(run.checkpoint(n)) == whole[n] for n in there if n != saving.number)
        if ended == 0:
            break
        assert ended == status
        if stop is disk_full:
            assert not [name for name in content(run) if name.startswith(".")], "half written"
        saving.save(run)
        assert content(run) == expected, f"stopped at change {nth}, and saved again"
    assert nth > 8 and ended == 0


def test_kept_is_every_kth_and_the_last_n(tmp_path):
    with open_run(tmp_path, "train", {"seed": 1}, tmp_path) as run:
        seen = []
        for number in range(1, 10):
            run.save_checkpoint(number, write(number), 2, 3)
            seen.append(run.checkpoints())
    assert seen[:5] == [[1], [1, 2], [2, 3], [3, 4], [3, 4, 5]]
    assert seen[5:] == [[3, 5, 6], [3, 6, 7], [3, 6, 7, 8], [3, 6, 8, 9]]


def test_what_was_saved_as_a_milestone_stays_and_the_present_rule_keeps_what_it_finds(tmp_path):
    with open_run(tmp_path, "train", {"seed": 1}, tmp_path) as run:
        for number in (2, 3, 4):
            run.save_checkpoint(number, write(number), 2, 2)
        assert run.checkpoints() == [2, 3, 4] and run.milestones(2) == [2, 4]
        run.save_checkpoint(5, write(5), 2, 3)
        assert run.checkpoints() == [2, 3, 4, 5] and run.milestones(3) == [2, 3, 4]
        run.save_checkpoint(6, write(6), 1, None)
        assert run.checkpoints() == [2, 4, 6] and run.milestones(None) == [2, 4]


def test_a_damaged_milestone_is_left_to_a_person_and_counts_for_nothing(tmp_path):
    run = Saving((2, 4), 5, keep=1, before=2, damaged=(2,)).prepare(tmp_path)
    run.save_checkpoint(5, write(5), 1, 2)
    assert run.checkpoints() == [4, 5] and run.milestones(2) == [4] and run.checkpoint(2).is_dir()


def test_versioned_is_a_checkpoint_not_its_number(tmp_path):
    run = Saving((2, 4), 5, keep=1, before=2).prepare(tmp_path)
    for number in (2, 4):
        run.mark_versioned(number)
    (run.checkpoint(4) / "policy" / "weights").write_text("")
    run.save_checkpoint(4, write(4, " of another timeline"), 1, 2)
    assert run.is_versioned(2) and not run.is_versioned(4) and run.checkpoints() == [2, 4]


def test_milestones_decide_no_bits_and_no_fingerprint(project, tmp_path, monkeypatch):
    """Straight; with milestones; and with milestones, killed after one that is no other checkpoint."""
    found = {}
    for name, overrides, stop_after in (
        ("plain", (), None),
        ("milestones", ("run.milestone_every=3",), None),
        ("killed", ("run.milestone_every=3",), 5),
    ):
        monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / name))
        params = small(*MILESTONES, *overrides)
        if stop_after:
            stopped, _ = run_on(params, project, stop_after)
            assert stopped.run.checkpoints() == [3, 4]
        session, weights = run_on(params, project)
        rows = [{k: v for k, v in r.items() if not k.startswith("timing/")} for r in session.run.read_metrics()]
        found[name] = session, weights, rows
    (plain, weights, rows), (kept, same, same_rows), (resumed, *_, rows_again) = found.values()
    assert len({s.run.path.name for s in (plain, kept, resumed)}) == 1 and rows == same_rows == rows_again
    assert all(same_bits(weights[n], same[n]) for n in range(1, 7)) and not same_bits(weights[1], weights[6])
    assert (plain.run.checkpoints(), kept.run.checkpoints(), resumed.run.checkpoints()) == ([6], [3, 6], [3, 6])
    last = files(plain.run.checkpoint(6))
    for session in (kept, resumed):
        other = files(session.run.checkpoint(6))
        assert {k: v for k, v in other.items() if k in last and k != "COMPLETE"} == {
            k: v for k, v in last.items() if k != "COMPLETE"
        }
        assert other.keys() - last.keys() == {"MILESTONE"}


def test_training_goes_on_from_any_milestone_with_the_same_bits(project):
    """So also after a rewind, which gives the milestones after it new bits where nothing repeats to the bit."""
    params = small(*MILESTONES, "run.milestone_every=2")
    session, weights = run_on(params, project)
    run = session.run
    assert run.checkpoints() == [2, 4, 6]
    named = {(state(session, n)["best"] or {"iteration": None})["iteration"] for n in (2, 4, 6)}
    assert bests(session) == named, "of each milestone the best policy so far is kept"
    whole = {n: files(run.checkpoint(n)) for n in (2, 4, 6)}
    for newest in (4, 2):
        for later in range(newest + 1, 7):
            shutil.rmtree(run.checkpoint(later), ignore_errors=True)
        again, redone = run_on(params, project)
        assert set(redone) == set(range(newest + 1, 7)) and same_bits(redone[6], weights[6])
        assert {n: files(run.checkpoint(n)) for n in run.checkpoints()} == whole
        assert again.best == session.best
    for number in (2, 4, 6):
        assert same_bits(load_policy(run.checkpoint(number) / "policy")[0].state_dict(), weights[number])


def test_milestones_survive_a_damaged_checkpoint_and_another_rule(project):
    run_on(small(*MILESTONES, "run.milestone_every=2"), project, stop_after=5)
    with open_session(small(*MILESTONES, "run.milestone_every=5"), project) as session:
        run = session.run
        assert (session.iteration, run.checkpoints()) == (4, [2, 4])
        for number in (5, 6):
            rollout_step(session, number)
            credit_step(session, number)
            train_step(session, number)
            check_bests(session)
            assert session.at_milestone == (number == 5)
    assert run.checkpoints() == [2, 4, 5, 6]
    (run.checkpoint(6) / "policy" / "model.safetensors").write_bytes(b"")
    resumed, weights = run_on(small(*MILESTONES), project)
    assert set(weights) == {6} and run.checkpoints() == [2, 4, 5, 6]
    assert read_json(resumed.run.checkpoint(5) / "state.json")["iteration"] == 5


def rollouts(run: RunDirectory) -> dict[str, set[str]]:
    """Files of every iteration's folder."""
    folder = run.path / "iterations"
    return {p.name: {f.name for f in p.iterdir()} for p in sorted(folder.iterdir())}


SMALL_FILES = {"questions.json", "metrics.json", COMPLETE}


def sampled(path: Path, iterations: int, checkpoints: tuple[int, ...]) -> RunDirectory:
    run = RunDirectory(path)
    for number in range(1, iterations + 1):
        folder = run.start_iteration(number)
        for name in (*SMALL_FILES, *ROLLOUTS):
            (folder / name).write_text(f"{name} of {number}")
    for number in checkpoints:
        run.save_checkpoint(number, write(number), 9)
    return run


def test_trees_of_the_newest_iterations_and_of_those_with_a_checkpoint_stay(tmp_path):
    run = sampled(tmp_path, 9, (2, 5))
    run.keep_rollouts(9, None)
    assert all(names == SMALL_FILES | set(ROLLOUTS) for names in rollouts(run).values())
    run.keep_rollouts(8, 2)
    kept = {int(name) for name, names in rollouts(run).items() if names == SMALL_FILES | set(ROLLOUTS)}
    assert kept == {2, 5, 7, 8, 9}, "9 is of a lost timeline, and the next one to be done again"
    assert all(rollouts(run)[f"{n:06d}"] == SMALL_FILES for n in set(range(1, 10)) - kept)
    for number in (8, 9, 10):
        run.save_checkpoint(number, write(number), 1)
    run.keep_rollouts(9, 1)
    assert {int(name) for name, names in rollouts(run).items() if set(ROLLOUTS) <= names} == {9}


def test_wherever_the_deletion_of_trees_is_killed_the_next_one_completes_it(tmp_path):
    before, straight = sampled(tmp_path / "before", 6, (3,)), RunDirectory(tmp_path / "straight")
    shutil.copytree(before.path, straight.path)
    straight.keep_rollouts(6, 1)
    for nth in range(1, 20):
        run = RunDirectory(tmp_path / f"{nth}")
        shutil.copytree(before.path, run.path)
        ended = in_child(lambda run=run: run.keep_rollouts(6, 1), nth, killed, once=True)
        there = rollouts(run)
        assert all(names >= SMALL_FILES for names in there.values())
        assert all(set(ROLLOUTS) <= there[f"{number:06d}"] for number in (3, 6))
        run.keep_rollouts(6, 1)
        assert rollouts(run) == rollouts(straight)
        if ended == 0:
            break
    assert nth == 9 and ended == 0, "eight files of four iterations"


def test_a_run_that_deletes_its_trees_ends_with_the_same_bits_and_what_it_publishes(project, tmp_path, monkeypatch):
    """Killed after iteration 5, told to end at its checkpoint of 4 or to go on; and refused as recorded rollouts."""
    found = {}
    for name, keep, stop_after in (("all", "null", None), ("few", "1", 5)):
        monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / name))
        overrides = (*MILESTONES, f"run.keep_rollouts={keep}")
        if stop_after:
            run_on(small(*overrides), project, stop_after)
            run_on(small(*overrides, "run.iterations=4"), project, publish=True)
            assert (project.training / "trees.parquet").is_file()
        found[name] = run_on(small(*overrides), project, publish=True)
    (every, weights), (few, resumed) = found["all"], found["few"]
    assert every.run.path.name == few.run.path.name and same_bits(weights[6], resumed[6])
    assert all(set(ROLLOUTS) <= names for names in rollouts(every.run).values())
    assert [name for name, names in rollouts(few.run).items() if set(ROLLOUTS) & names] == ["000006"]
    params = small(*MILESTONES)
    with pytest.raises(
        RunError, match=r"000001: its trees are gone.*run.keep_rollouts=null, or one that --rollouts-only"
    ):
        check_training(params, project, replay=str(few.run.path))
    check_training(params, project, replay=str(every.run.path))


def test_a_run_that_only_samples_keeps_all_its_trees(project):
    params = small("run.iterations=3", "run.keep_rollouts=1")
    with open_session(params, project, rollouts_only=True) as session:
        for number in (1, 2, 3):
            rollout_step(session, number)
            credit_step(session, number)
            keep_step(session, number)
    assert all(set(ROLLOUTS) <= names for names in rollouts(session.run).values())
