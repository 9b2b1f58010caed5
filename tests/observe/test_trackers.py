"""Several trackers at once; what one of them does wrong stops neither training nor the others."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import time

import pytest

from spo_core.config import load_params
from spo_core.errors import ConfigError
from spo_core.observe.trackers import Trackers, check_trackers, thread
from spo_core.observe.tree_table import COLUMNS
from spo_core.system.plugins import open_project, project
from tests.conftest import ROOT

NOTES = """
import json
import threading
import time
from pathlib import Path

GATE = threading.Event()

class Notes:
    def __init__(self, options):
        self.file, self.fails = Path(options["file"]), options.get("fails")
        self.hangs, self.seconds = options.get("hangs"), options.get("seconds", 0)
    def note(self, what, *more):
        time.sleep(self.seconds)
        with self.file.open("a") as file:
            print(json.dumps([what, *more]), file=file)
        if self.fails == what:
            raise options_error()
        if self.hangs == what:
            GATE.wait()
    def start(self, run):
        self.note("start", run.name, run.directory.name, run.params.run.seed)
        return 1
    def log(self, row): self.note("log", row["iteration"])
    def table(self, name, iteration, columns, rows): self.note("table", name, iteration, len(columns), len(rows))
    def finish(self, failed): self.note("finish", failed)

def options_error():
    return {"a": OSError("it is gone"), "b": SystemExit(3)}[KIND]
KIND = "a"
"""
TOLD = [  # a tracker that has the first of ROWS, by ``told``
    ["start", "run", "train-a", 0],
    ["table", "trees", 2, len(COLUMNS), 1],
    ["log", 2],
    ["log", 3],
    ["table", "trees", 4, len(COLUMNS), 1],
    ["log", 4],
    ["finish", False],
]
ROWS = [{"iteration": n, "rollout/reward": 0.5} for n in (1, 2, 3)]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    before = project()
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (tmp_path / "mine.py").write_text(NOTES)
    open_project(tmp_path)
    yield tmp_path
    open_project(before)


def own(mine, name: str, **more: object) -> dict:
    return {"type": "custom", "path": "mine:Notes", "options": {"file": str(mine / name), **more}}


def chosen(*trackers: object):
    return load_params(ROOT, None, (f"run.trackers={json.dumps(trackers)}", "run.wandb.trees_every=2"))


def notes(mine, name: str) -> list:
    return [json.loads(line) for line in (mine / name).read_text().splitlines()]


def table(iteration: int) -> list:
    return [[None] * len(COLUMNS)]


def told(params, mine, **error: type[Exception]) -> None:
    with Trackers(params, mine / "train-a", mine, "run", ROWS[:2], table) as trackers:
        trackers.log(ROWS[2])
        trackers.log({"iteration": 4})
        if error:
            raise error["error"]


def given_up(caplog) -> list[str]:
    """Keys of the trackers that were warned of, once for each warning."""
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert all("is told no more" in one and "metrics.jsonl" in one for one in said), said
    return [one.partition(":")[0] for one in said]


def test_each_is_told_all_that_it_has_not(mine):
    told(chosen(own(mine, "first"), "wandb", own(mine, "second")), mine)
    assert notes(mine, "first") == notes(mine, "second") == TOLD


def test_the_end_says_whether_the_run_failed(mine):
    with pytest.raises(KeyError):
        told(chosen(own(mine, "first")), mine, error=KeyError)
    assert notes(mine, "first")[-1] == ["finish", True]


@pytest.mark.parametrize("kind", ["a", "b"])
@pytest.mark.parametrize("where", ["start", "log", "table", "finish"])
def test_a_failure_ends_that_tracker_alone_and_is_told_once(mine, caplog, where, kind):
    (mine / "mine.py").write_text(NOTES.replace('KIND = "a"', f'KIND = "{kind}"'))
    open_project(mine)
    told(chosen(own(mine, "bad", fails=where), own(mine, "good")), mine)
    assert notes(mine, "good")[-1] == ["finish", False] and notes(mine, "bad")[-1][0] == where
    assert given_up(caplog) == ["run.trackers.0"]


@pytest.mark.parametrize("where", ["start", "log", "table", "finish"])
def test_one_that_hangs_costs_a_bounded_time_and_one_warning(mine, caplog, monkeypatch, where):
    """No iteration waits for it, the others are told everything, and it is not called again should it come back."""
    monkeypatch.setattr(thread, "PATIENCE", 1.0)
    began = time.monotonic()
    told(chosen(own(mine, "bad", hangs=where), own(mine, "good")), mine)
    assert time.monotonic() - began < 5
    assert notes(mine, "good") == TOLD and notes(mine, "bad")[-1][0] == where
    sys.modules["mine"].GATE.set()
    time.sleep(0.3)
    assert notes(mine, "bad")[-1][0] == where
    assert given_up(caplog) == ["run.trackers.0"]


def test_one_that_hangs_is_given_up_during_training(mine, caplog, monkeypatch):
    monkeypatch.setattr(thread, "PATIENCE", 0.5)
    with Trackers(chosen(own(mine, "bad", hangs="log")), mine / "train-a", mine, "run") as trackers:
        began = time.monotonic()
        trackers.log(ROWS[0])
        trackers.log(ROWS[1])
        assert time.monotonic() - began < 0.4 and not given_up(caplog)
        time.sleep(0.6)
        trackers.log(ROWS[2])
        assert given_up(caplog) == ["run.trackers.0"]
        began = time.monotonic()
    assert time.monotonic() - began < 0.4  # the end does not wait for it again
    sys.modules["mine"].GATE.set()


def test_no_more_than_a_queue_waits_for_one_that_hangs(mine, caplog, monkeypatch):
    monkeypatch.setattr(thread, "PATIENCE", 0.5)
    monkeypatch.setattr(thread, "WAITING", 3)
    with Trackers(chosen(own(mine, "bad", hangs="log")), mine / "train-a", mine, "run") as trackers:
        began = time.monotonic()
        for number in range(1, 100):
            trackers.log({"iteration": number})
        assert time.monotonic() - began < 2
    assert given_up(caplog) == ["run.trackers.0"]
    sys.modules["mine"].GATE.set()


@pytest.mark.parametrize("waiting", [1, 2, 1000])
def test_one_that_is_slow_is_told_everything_in_order(mine, caplog, monkeypatch, waiting):
    monkeypatch.setattr(thread, "WAITING", waiting)
    told(chosen(own(mine, "slow", seconds=0.2)), mine)
    assert notes(mine, "slow") == TOLD and not given_up(caplog)


def test_one_need_not_be_a_list_and_none_is_nobody(mine, tmp_path):
    assert load_params(ROOT).run.trackers == ("wandb",)
    assert load_params(ROOT, None, ("run.trackers=tensorboard",)).run.trackers == ("tensorboard",)
    single = load_params(ROOT, None, ("run.trackers={type: custom, path: 'mine:Notes', options: {file: x}}",))
    assert single.run.trackers[0].path == "mine:Notes"
    before = set(tmp_path.iterdir())
    with Trackers(load_params(ROOT, None, ("run.trackers=none",)), tmp_path, tmp_path, "run") as trackers:
        trackers.log(ROWS[0])
        assert trackers.where is None
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("trackers", "says"),
    [
        ("[wandb, wandb]", "each once"),
        ("[wandbb]", r"run\.trackers"),
        ("{type: custom, path: mine}", r"run\.trackers.*is no path of a function"),
        ("{type: custom, path: 'mine:note'}", r"run\.trackers\.0: mine:note: module mine has no note"),
        ("{type: custom, path: 'mine:options_error'}", "is a function; Tracker takes a class"),
        ("{type: custom, path: 'mine:Path'}", "has no method start; Tracker has start, log, table, finish"),
    ],
)
def test_refused_at_the_start(mine, trackers, says):
    with pytest.raises(ConfigError, match=says):
        check_trackers(load_params(ROOT, None, (f"run.trackers={trackers}",)))


def test_a_package_that_is_missing_is_asked_for(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else found(name))
    with pytest.raises(ConfigError, match=r"run\.trackers\.1: tensorboard needs the extra: pip install"):
        check_trackers(chosen("none", "tensorboard"))


def test_tensorboard_has_each_iteration_once_across_starts(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    params, folder = chosen("tensorboard"), tmp_path / "outputs" / "tensorboard" / "train-a"
    check_trackers(params)
    told(params, tmp_path)
    with Trackers(params, tmp_path / "train-a", tmp_path, "run", ROWS[:1]) as trackers:  # a kill undid the others
        trackers.log({"iteration": 2, "rollout/reward": 0.25, "train/skipped": 0, "none": None})
    read = EventAccumulator(str(folder))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("rollout/reward")] == [(1, 0.5), (2, 0.25)]
    assert "train/skipped" in read.Tags()["scalars"] and "none" not in read.Tags()["scalars"]
    assert len(list(folder.iterdir())) == 2
