"""Flows over real clusters of two workers on this machine, by Prefect's Dask and Ray task runners."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from safetensors.torch import load_file

from spo_core.config import DaskRunner, RayRunner, load_params
from spo_core.errors import ConfigError
from spo_core.paths import Paths
from spo_core.problems.prepare import prepare_splits
from spo_core.train import shards
from spo_core.train.warmup import warm_up
from spo_core.tree import read_trees
from tasks.cluster import cluster, has_room
from tests.flows.conftest import change, needs_evaluation, run_module
from tests.system.test_processes import gone, until
from tests.train.test_shards import furthest

TRAINED = (
    "run.iterations=2",
    "run.wandb.mode=disabled",
    "policy.warmup.steps=40",
    "rollout.truncated=grade",
    "verify.rewards={correct: 1.0, wrong: 0.5, no_answer: 0.0}",  # a policy that hardly knows anything earns some
)
CLUSTERS = {
    name: pytest.param(
        name,
        marks=[
            pytest.mark.skipif(importlib.util.find_spec(f"prefect_{name}") is None, reason="needs the extra"),
            pytest.mark.exhaustive,
        ],
    )
    for name in ("dask", "ray")
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(new_project) -> Path:
    """With data, a first policy and a run trained without a cluster, as run ``local``."""
    project = new_project()
    change(project, {"evaluate": {"contexts": {"short": 56, "long": 80}, "samples": 1}})
    params, paths = load_params(project, None, TRAINED), Paths(project)
    prepare_splits(params, paths)
    warm_up(params, paths)
    return project


def train(project: Path, environment: dict, name: str, *options: str) -> subprocess.Popen:
    target = project / "outputs" / "runs" / name
    for folder in ("data", "checkpoints"):
        shutil.copytree(project / folder, target / folder)
    chosen = [part for option in (*TRAINED, *options) for part in ("--set", option)]
    return subprocess.Popen(
        [sys.executable, "-m", "flows.train", "--name", name, *chosen],
        cwd=project,
        env=environment | {"SPO_WORK_DIR": str(project / f"work-{name}")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def results(project: Path, name: str) -> tuple[dict, list]:
    weights = load_file(project / "outputs" / "runs" / name / "checkpoints" / "final" / "model.safetensors")
    files = sorted((project / f"work-{name}").glob("train-*/iterations/*/trees.parquet"))
    return weights, [tree for file in files for tree in read_trees(file)]


@pytest.fixture(scope="module")
def local(project, environment) -> tuple[dict, list]:
    flow = train(project, environment, "local")
    output, _ = flow.communicate()
    assert flow.returncode == 0, output
    return results(project, "local")


@pytest.mark.parametrize("name", CLUSTERS.values())
def test_training_over_a_cluster_is_training(project, environment, local, name):
    """The same tokens, rewards and validation, log-probs and weights to rounding, though a worker is killed while it
    works (Dask); every port that the cluster opens is on the loopback device, and no process outlives the flow."""
    flow = train(project, environment, name, f"run.task_runner={{type: {name}, workers: 2}}")
    work = project / f"work-{name}"
    wait_for(lambda: any(work.glob("train-*/cluster/*/1.json")), flow)
    children = psutil.Process(flow.pid).children(recursive=True)
    foreign = listening(children)
    if name == "dask":
        workers = [p for p in children if "dask worker" in " ".join(p.cmdline()).lower()]
        assert len(workers) == 2
        workers[0].kill()
    output, _ = flow.communicate()
    assert flow.returncode == 0, output
    weights, trees = results(project, name)
    assert len(trees) == 8 and furthest(local[1], trees) < 1e-4
    start = load_file(project / "checkpoints" / "warmup" / "model.safetensors")
    moved = max(float((local[0][k] - start[k]).abs().max()) for k in start)
    apart = max(float((local[0][k] - weights[k]).abs().max()) for k in weights)
    assert moved > 1e-4 and apart < 0.01 * moved, f"{apart} of {moved}"
    assert not foreign, foreign
    until(lambda: all(gone(p.pid) for p in children))
    assert not list(work.glob("train-*/cluster"))


@pytest.mark.skipif(importlib.util.find_spec("prefect_dask") is None, reason="needs the extra cluster")
@pytest.mark.exhaustive
@needs_evaluation
def test_cells_mapped_over_a_cluster_have_the_local_scores(project, environment):
    chosen = ["--model", "warmup", "--name"]
    found = {}
    for name, more in (
        ("whole", ["--cell", "arithmetic-short"]),
        ("mapped", ["--set", "run.task_runner={type: dask, workers: 2}"]),
    ):
        target = project / "outputs" / "runs" / name
        for folder in ("data", "checkpoints"):
            shutil.copytree(project / folder, target / folder)
        work = {"SPO_WORK_DIR": str(project / f"work-{name}")}
        result = run_module(project, environment | work, "flows.evaluate", *chosen, name, *more)
        assert result.returncode == 0, result.stdout + result.stderr
        scores = sorted((target / "metrics" / "evaluate" / "warmup").glob("*.json"))
        found[name] = {p.name: {k: v for k, v in read(p).items() if "second" not in k} for p in scores}
        measured = len(list((project / f"work-{name}").glob("evaluate-*")))
        assert measured == len(scores) == (1 if name == "whole" else 2)
    assert found["whole"].items() <= found["mapped"].items()


@pytest.mark.skipif(importlib.util.find_spec("prefect_dask") is None, reason="needs the extra cluster")
def test_a_dask_cluster_at_an_address_is_used_and_left_as_it_was(monkeypatch):
    """A silent address and one without workers are refused. Its workers let go of what they held for the flow as soon
    as the part that they are at is done, and answer meanwhile."""
    import dask
    import distributed

    monkeypatch.setitem(dask.config.config["distributed"]["comm"]["timeouts"], "connect", "1s")
    silent = DaskRunner(type="dask", address="tcp://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"address tcp://127\.0\.0\.1:9"), cluster(silent):
        pass
    where = {"protocol": "tcp", "host": "127.0.0.1", "dashboard_address": None}
    with distributed.LocalCluster(n_workers=0, processes=False, **where) as theirs:
        address = DaskRunner(type="dask", address=theirs.scheduler_address)
        monkeypatch.setattr("tasks.cluster.FIRST_WORKER", 0.5)
        with pytest.raises(ConfigError, match=r"address tcp://.*: no worker within 0\.5 s"), cluster(address):
            pass
        monkeypatch.setattr("tasks.cluster.FIRST_WORKER", 60)
        theirs.scale(1)
        closed: list[str] = []
        worker = SimpleNamespace(close=lambda: closed.append("worker"))
        monkeypatch.setattr(shards, "_open", shards._Open("", worker))
        with shards._LOCK:  # as by a part under way, in this very process
            with cluster(address) as workers:
                assert workers.runner is not None
            with cluster(address) as workers:
                assert workers.runner.client.submit(abs, -1).result(timeout=60) == 1
            assert closed == []
        until(lambda: closed == ["worker"])
        assert theirs.workers and shards._open is None


def test_ray_must_have_a_node_for_a_part():
    small, large = ({"Alive": True, "Resources": {"CPU": 8.0, "GPU": gpus}} for gpus in (1.0, 4.0))
    head = {"Alive": True, "Resources": {"memory": 1e9}}
    assert has_room([head, small], 0) and has_room([head, small, large], 2) and has_room([small], 0.5)
    assert not has_room([head], 0) and not has_room([small, small], 2)
    assert not has_room([small, large | {"Alive": False}], 2)


def test_a_missing_extra_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for params in (DaskRunner(type="dask"), RayRunner(type="ray")):
        with pytest.raises(ConfigError, match=r"needs the extra: pip install -e '\.\[cluster\]'"), cluster(params):
            pass


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def wait_for(found: Callable[[], bool], flow: subprocess.Popen) -> None:
    while not found():
        assert flow.poll() is None, flow.communicate()[0]
        time.sleep(0.05)


def listening(processes: list[psutil.Process]) -> list[tuple]:
    """Sockets on which anyone but this machine could reach them."""
    found = []
    for process in processes:
        try:
            found += [(process.name(), c.laddr) for c in process.net_connections("inet") if c.status == "LISTEN"]
        except psutil.NoSuchProcess:
            continue
    return [one for one in found if one[1].ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")]
