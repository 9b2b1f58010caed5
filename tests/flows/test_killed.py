"""A training flow that is killed again and again ends with the bits of one that ran through."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from spo_core.system.processes import child
from tests.flows.conftest import BROKEN_OFF, run_module
from tests.flows.crash import MARK, PHASES, Kill, Moment, survivors, wait_until_gone
from tests.flows.outcome import leftovers, newest_checkpoint, result, work
from tests.flows.test_deploy import ask
from tests.system.test_processes import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]
ITERATIONS, EVERY = (BROKEN_OFF["run"][key] for key in ("iterations", "checkpoint_every"))


def choose(phase: str, number: int, kills: int, done: int, trace: list[Moment], rng: random.Random) -> Kill:
    """A moment of the phase: every other time before one of its file system events, else after a random time.

    Most kills come before the next checkpoint is complete; only as many after it as let the run get on.
    """
    behind = done < ITERATIONS * number / (kills - kills // len(PHASES))
    if phase in ("checkpoint", "publish"):
        occurrence = 2 if behind and phase == "checkpoint" and done + 2 * EVERY <= ITERATIONS else 1
    else:
        occurrence = min(rng.randint(1, EVERY) + EVERY * behind, max(1, ITERATIONS - done))
    events, seconds = extent(trace, phase)
    if number % 2:
        return Kill(phase, occurrence, event=rng.randrange(events))
    return Kill(phase, occurrence, seconds=rng.uniform(0, seconds))


def extent(trace: list[Moment], phase: str) -> tuple[int, float]:
    """Events and seconds of a phase as it usually is; publishing ends with what DVC does, which is a second more."""
    began = [(m.phase, m.at) for m in trace if m.event == 0]
    lengths = [end - start for (p, start), (_, end) in itertools.pairwise(began) if p == phase]
    events = Counter(m.occurrence for m in trace if m.phase == phase)
    return statistics.median_low(events.values()), statistics.median_low(lengths or [trace[-1].at - began[-1][1] + 1.0])


@pytest.mark.parametrize("kills", [5, pytest.param(25, marks=pytest.mark.exhaustive)])
def test_killed_at_moments_of_every_phase(kills, straight, copy, quick, environment):
    uninterrupted, trace = straight
    assert {m.phase for m in trace} == set(PHASES)
    project, rng = copy(), random.Random(7)
    phases = [p for p in PHASES[:-1] for _ in range(kills // len(PHASES))]
    rng.shuffle(phases)
    phases += ["publish"] * (kills - len(phases))
    killed: Counter[str] = Counter()
    for number, phase in enumerate(phases):
        done = newest_checkpoint(project)
        kill = choose(phase, number, kills, done, trace, rng)
        ended = quick.run(project, kill=kill)
        print(number, done, kill, ended.status, ended.trace[-1] if ended.trace else None, len(ended.trace))
        assert ended.status == -9, f"{kill}: {ended.stdout}{ended.stderr}"
        assert ended.trace[-1].phase == phase, ended.stderr
        killed[phase] += 1
    assert sum(killed.values()) == kills and min(killed[phase] for phase in PHASES) >= kills // len(PHASES)
    last = run_module(project, environment, "flows.train")
    assert last.returncode == 0, last.stdout + last.stderr
    assert result(project) == result(uninterrupted) and leftovers(project) == []
    assert sum(row["train/skipped"] for row in result(project)["rows"]) == 0, "nothing was trained"


@pytest.mark.exhaustive
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(straight, copy, quick, environment):
    """A file cut off, then one that is missing; said on standard error and in Prefect's log."""
    project = copy()
    ended = quick.run(project, kill=Kill("rollout", occurrence=5))
    for name, next_kill in (("trainer/optimizer.safetensors", Kill("rollout", occurrence=3)), ("COMPLETE", None)):
        assert newest_checkpoint(project) == 4
        damaged = work(project) / "checkpoints" / "000004" / name
        if next_kill:
            os.truncate(damaged, 1000)
        else:
            damaged.unlink()
        ended = quick.run(project, kill=next_kill)
        assert ended.status == (-9 if next_kill else 0), ended.stderr
        says = f"{damaged.parents[name.count('/')]} is damaged ({name}), so it counts for nothing"
        assert f"WARNING {says}" in ended.stderr
        resumed = f"resumed after iteration 2 from {damaged.parents[name.count('/')].with_name('000002')}"
        until(lambda says=(says, resumed): all(words in logged(environment) for words in says))
    assert result(project) == result(straight[0]) and leftovers(project) == []


def logged(environment: dict) -> str:
    """What runs told Prefect's server."""
    return "\n".join(
        row["message"] for row in ask(environment, "logs/filter", {"limit": 200, "sort": "TIMESTAMP_DESC"})
    )


def test_a_second_start_is_refused_and_told_of_the_first(straight, copy, quick):
    project = copy()
    first = quick.start(project)
    until(lambda: any(project.glob("work/train-*/iterations/000002/COMPLETE")), seconds=300)
    os.kill(first, signal.SIGSTOP)
    try:
        second = quick.run(project)
    finally:
        os.kill(first, signal.SIGCONT)
    holder = f"process {first} on {platform.node()}"
    assert second.status == 2 and second.stdout == ""
    assert second.stderr == f"error: {work(project)} is in use by {holder}; wait for it, or stop it first\n"
    ended = quick.wait(first)
    assert ended.status == 0, ended.stderr
    assert result(project) == result(straight[0])


def holder(project: Path) -> int:
    """The process that owns the run's directory."""
    return int((work(project) / "lock").read_text().split()[1])


def wait_for(project: Path, pattern: str, process: subprocess.Popen) -> None:
    """Until a file of the run is there."""

    def there() -> bool:
        assert process.poll() is None, "it ended before it was killed"
        return any(work(project).glob(pattern)) if any(project.glob("work/train-*/lock")) else False

    until(there, seconds=400)


STAGE, DVC = ("iterations/000003/trees.parquet", False), ("checkpoints/000006/COMPLETE", True)


@pytest.mark.parametrize("moments", [[DVC], pytest.param([STAGE, DVC], marks=pytest.mark.exhaustive)])
def test_killed_under_dvc_repro(straight, copy, environment, moments):
    """First the stage's process alone, then DVC itself: the stage goes with it."""
    project = copy()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = environment | {"PATH": path, MARK: "dvc"}
    repro = [sys.executable, "-m", "dvc", "repro", "--single-item", "train"]
    for moment, whole in moments:
        with (project.parent / "log").open("w+") as log:
            process = subprocess.Popen(repro, cwd=project, env=env, stdout=log, stderr=log)
            wait_for(project, moment, process)
            os.kill(process.pid if whole else holder(project), signal.SIGKILL)
            status = process.wait(timeout=120)
            log.seek(0)
            assert status == (-signal.SIGKILL if whole else 255), log.read()
        wait_until_gone(f"{MARK}=dvc")
    last = subprocess.run(repro, cwd=project, env=env, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stdout + last.stderr
    assert result(project) == result(straight[0]) and leftovers(project) == []
    status = run_module(project, environment, "dvc", "status", "--json", "train")
    assert json.loads(status.stdout) == {}, status.stdout + status.stderr


@pytest.mark.exhaustive
def test_killed_under_a_worker(straight, copy, environment):
    """The worker says that the run crashed; the deployment's next run goes on."""
    project = copy()
    env = {k: v for k, v in environment.items() if k != "MAKELEVEL"} | {
        MARK: "worker",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--pool", "killed"]
    with child(worker, cwd=project.parent, env=env, log=project.parent / "worker.log") as process:
        until(lambda: any(pool["name"] == "killed" for pool in ask(environment, "work_pools/filter", {})), seconds=200)
        deployment = {
            "name": "killed",
            "flow_id": ask(environment, "flows/", {"name": "train"})["id"],
            "entrypoint": "flows.train.train",
            "work_pool_name": "killed",
            "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(project)}}],
            "enforce_parameter_schema": False,
        }
        make_run = f"deployments/{ask(environment, 'deployments/', deployment)['id']}/create_flow_run"
        first = ask(environment, make_run, {})["id"]
        wait_for(project, "iterations/000005/credits.parquet", process)
        os.kill(holder(project), signal.SIGKILL)
        until(lambda: ask(environment, f"flow_runs/{first}")["state_type"] == "CRASHED", seconds=200)
        until(lambda: len(survivors(f"{MARK}=worker")) == 1, seconds=60)  # the worker
        second = ask(environment, make_run, {})["id"]
        ended = {"COMPLETED", "FAILED", "CRASHED"}
        until(lambda: ask(environment, f"flow_runs/{second}")["state_type"] in ended, seconds=400)
        state = ask(environment, f"flow_runs/{second}")["state"]
        assert state["type"] == "COMPLETED", state
    assert result(project) == result(straight[0]) and leftovers(project) == []


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra deepspeed")
@pytest.mark.exhaustive
def test_killed_with_deepspeed_on_two_ranks(copy, quick):
    """Launcher and ranks go with the flow, in the middle of an update too."""
    ranks = {"backend": {"type": "deepspeed", "ranks": 2, "zero_stage": 1}}
    changes = {"run": {"iterations": 3, "checkpoint_every": 2}, "learn": ranks}
    uninterrupted, project = copy(changes), copy(changes)
    ended = quick.run(uninterrupted)
    assert ended.status == 0, ended.stderr
    _, seconds = extent(ended.trace, "update")
    ended = quick.run(project, kill=Kill("update", occurrence=3, seconds=seconds / 2))
    assert ended.status == -9 and ended.trace[-1].phase == "update", ended.stderr
    ended = quick.run(project)
    assert ended.status == 0, ended.stderr
    assert result(project) == result(uninterrupted) and leftovers(project) == []
    assert sum(row["train/skipped"] for row in result(project)["rows"]) == 0, "nothing was trained"
    assert not [p for p in (project / "work").rglob("*") if p.suffix in (".pkl", ".pt", ".bin")]
