"""The deployed pipeline on a real server, run by the workers that ``make worker`` starts."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spo_core.system.files import folder_digest
from spo_core.system.processes import child
from tests.flows.conftest import change, needs_evaluation, run_module
from tests.flows.test_deploy import ask, deploy

pytestmark = [pytest.mark.slow, needs_evaluation, pytest.mark.timeout(1500)]
TINY = {
    "run": {"wandb": {"trees_every": 1}},
    "data": {"train": 64, "validation": 4, "test": 4},
    "policy": {"warmup": {"steps": 20}},
    "evaluate": {"contexts": {"long": 80}, "samples": 1},
}
LIMIT = 300  # seconds, on a busy machine
SECRETS = {
    name: secrets.token_hex(20)
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_KEY", "OPENAI_API_KEY")
}


@pytest.fixture(scope="module")
def environment(own_server) -> dict[str, str]:
    return own_server


@pytest.fixture(scope="module")
def project(new_project, environment) -> Path:
    folder = new_project()
    change(folder, TINY)
    commit = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qam", "tiny"]
    subprocess.run(commit, cwd=folder, check=True)
    deploy(folder, environment)
    return folder


@pytest.fixture(scope="module")
def worker(project, environment, tmp_path_factory) -> Iterator[tuple[subprocess.Popen, Path]]:
    log = tmp_path_factory.mktemp("worker") / "log"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    quiet = {"PREFECT_WORKER_QUERY_SECONDS": "2", "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "PATH": path}
    variables = environment | SECRETS | quiet
    with child([sys.executable, "-m", "flows.worker"], cwd=project, env=variables, log=log) as process:
        yield process, log


def until(found: Callable[[], object], log: Path) -> object:
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        if result := found():
            return result
        time.sleep(0.5)
    raise AssertionError(log.read_text(errors="replace")[-6000:])


def started(environment: dict, flow: str) -> list[dict]:
    """Runs of the flow that a deployment started, not those inside another flow."""
    runs = ask(environment, "flow_runs/filter", {"flows": {"name": {"any_": [flow]}}})
    return [run for run in runs if run["deployment_id"] is not None]


def test_an_experiment_that_a_worker_ran(project, environment, worker):
    given = ["-p", 'overrides=["run.iterations=1", "learn.learning_rate=2e-6"]', "-p", "name=tried"]
    result = run_module(
        project, environment, "prefect", "deployment", "run", "experiment/experiment", *given, "--watch"
    )
    log = worker[1].read_text(errors="replace")[-6000:]
    assert result.returncode == 0, result.stdout + result.stderr + log
    (run,) = started(environment, "experiment")
    assert run["state"]["name"] == "Completed", log
    output = project / "outputs" / "runs" / "tried"
    assert (output / "report" / "index.html").is_file()
    assert json.loads((output / "metrics" / "train.json").read_text()), "no metrics of the training"
    assert not (project / "report").exists(), "a run with overrides is not the main run"


def holding(folders: list[Path], text: str) -> list[Path]:
    """Files, binary ones too, that hold the text."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if text.encode() in path.read_bytes()]


def test_it_left_no_secret_of_its_environment_behind(project, environment, worker):
    """In params, manifests, checkpoints, W&B's files, the report, the log, or the server's database."""
    folders = [project, Path(environment["PREFECT_HOME"]), worker[1].parent]
    found = {path.suffix for path in holding(folders, "tried")}
    assert found >= {".db", ".wandb", ".html"}, "the search does not see what it should"
    for name, value in SECRETS.items():
        assert not holding(folders, value), (name, holding(folders, value))


@pytest.mark.exhaustive
def test_a_worker_that_is_told_to_end_lets_its_run_end(project, environment, worker):
    process, log = worker
    given = ["-p", 'overrides=["policy.warmup.steps=400"]', "-p", "name=tried"]
    result = run_module(project, environment, "prefect", "deployment", "run", "warmup/warmup", *given)
    assert result.returncode == 0, result.stdout + result.stderr
    work = project / "work"
    policy = project / "outputs" / "runs" / "tried" / "checkpoints" / "warmup"
    manifests, before = set(work.glob("warmup-*/manifest.json")), folder_digest(policy)
    until(lambda: set(work.glob("warmup-*/manifest.json")) - manifests, log)
    process.send_signal(signal.SIGTERM)
    (run,) = started(environment, "warmup")
    assert run["state"]["name"] == "Running"
    assert process.wait(timeout=LIMIT) == 0, log.read_text(errors="replace")[-6000:]
    (run,) = started(environment, "warmup")
    assert run["state"]["name"] == "Completed", log.read_text(errors="replace")[-6000:]
    assert folder_digest(policy) != before, "it published nothing"
