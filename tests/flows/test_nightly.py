"""Nights on a real server, worker and schedule: every night is a run of the deployment that prefect.yaml describes.

The policy is asked what it was taught by heart, so that it has a score that can fall.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spo_core.evaluate.nightly.nightly_report import NightlyReport
from spo_core.problems.prepare import prepare_splits
from spo_core.system.files import folder_digest
from spo_core.system.processes import child
from spo_core.train.warmup import warm_up
from tasks.records import RunSpec
from tests.flows.conftest import change, needs_evaluation, run_module
from tests.flows.test_deploy import ask, make_block

pytestmark = [pytest.mark.slow, needs_evaluation, pytest.mark.timeout(1500)]
EASY = {
    "run": {"iterations": 2},
    "data": {"train": 16, "validation": 4, "test": 16, "arithmetic": {"steps": [1, 1], "careless": 0.0}},
    "policy": {"warmup": {"steps": 120, "batch_size": 16}},
    "evaluate": {"contexts": {"long": 24}, "samples": 2, "nightly": {"wait_seconds": 1.0}},
}
GPU = {"names": ["gpu"], "slots": 1}
LIMIT = 420  # seconds for a night, on a busy machine


@pytest.fixture(scope="module")
def environment(own_server) -> dict[str, str]:
    return own_server


@pytest.fixture(scope="module")
def project(new_project, environment) -> Path:
    """Trained for two iterations."""
    folder = new_project()
    change(folder, EASY)
    (folder / ".gitignore").open("a").write("\n/reports/\n")
    prefect = folder / "prefect.yaml"
    prefect.write_text(prefect.read_text().replace('cron: "0 3 * * *"', "interval: 15"))
    commit = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qam", "easy"]
    subprocess.run(commit, cwd=folder, check=True)
    spec = RunSpec(str(folder))
    prepare_splits(spec.params, spec.paths)
    warm_up(spec.params, spec.paths)
    train_in_turn(folder, environment)
    shutil.copy(folder / "data" / "arithmetic" / "train.jsonl", folder / "data" / "arithmetic" / "test.jsonl")
    return folder


def train_in_turn(project: Path, environment: dict) -> None:
    """Training waits for the GPU, says so, and then has it to itself."""
    ask(environment, "v2/concurrency_limits/", {"name": "gpu", "limit": 1})
    ask(environment, "v2/concurrency_limits/increment", GPU)
    log = project.parent / "train.log"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with log.open("wb") as output:
        training = subprocess.Popen(
            [sys.executable, "-m", "flows.train"],
            cwd=project,
            env=environment | {"PATH": path},
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def said() -> bool:
        rows = ask(environment, "logs/filter", {"sort": "TIMESTAMP_DESC"})
        return any("waiting for a slot" in row["message"] for row in rows)

    wait_for(said, log)
    assert not list(project.glob("work/train-*")) and training.poll() is None
    ask(environment, "v2/concurrency_limits/decrement", GPU)
    wait_for(lambda: list(project.glob("work/train-*")), log)
    assert ask(environment, "v2/concurrency_limits/gpu")["active_slots"] == 1
    assert training.wait(timeout=LIMIT) == 0, log.read_text()
    assert ask(environment, "v2/concurrency_limits/gpu")["active_slots"] == 0


@pytest.fixture(scope="module")
def inbox() -> Iterator[tuple[str, list[dict]]]:
    """A webhook's address, and what was posted there."""
    received: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Silence."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", received
    server.shutdown()


@pytest.fixture(scope="module")
def worker(project, environment, inbox, tmp_path_factory) -> Iterator[Path]:
    """A worker of the deployed project; its log."""
    make_block(environment, inbox[0])
    deployed = run_module(project, environment, "flows.deploy")
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    log = tmp_path_factory.mktemp("worker") / "log"
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "spo-gpu"]
    variables = environment | {"PREFECT_WORKER_QUERY_SECONDS": "2"}
    with child(command, cwd=tmp_path_factory.mktemp("elsewhere"), env=variables, log=log):
        yield log


def nights(environment: dict) -> list[dict]:
    """Runs of the flow that a schedule made and that ended, the newest first."""
    body = {"flows": {"name": {"any_": ["nightly"]}}, "sort": "START_TIME_DESC"}
    runs = [r for r in ask(environment, "flow_runs/filter", body) if r["auto_scheduled"] and r["start_time"]]
    return [r for r in runs if r["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED")]


def wait_for(found: Callable[[], object], log: Path) -> object:
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        if result := found():
            return result
        time.sleep(1)
    raise AssertionError(log.read_text(errors="replace")[-6000:])


def next_night(environment: dict, log: Path, name: str) -> dict:
    """The first night that starts from now on and ends in the state of that name, with only such before as may be."""
    begun = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())

    def ended() -> dict | None:
        new = [r for r in nights(environment) if r["start_time"] > begun]
        bad = [r["state"] for r in new if r["state"]["type"] != "COMPLETED"]
        assert not bad, (bad, log.read_text(errors="replace")[-6000:])
        return next((r for r in new if r["state"]["name"] == name), None)

    return wait_for(ended, log)


def kept(project: Path) -> dict[str, object]:
    """What no night may touch."""
    status = subprocess.run(["git", "status", "--porcelain"], cwd=project, capture_output=True, text=True, check=True)
    folders = {name: folder_digest(project / name) for name in ("metrics", "checkpoints", "plots", "data")}
    return folders | {"git": status.stdout, "dvc": (project / "dvc.lock").read_text()}


def degraded(project: Path) -> None:
    """One more complete checkpoint of the run, with nothing left of what was learned."""
    newest = max(project.glob("work/train-*/checkpoints/*"))
    copy = newest.with_name(".new")
    shutil.copytree(newest, copy)
    weights = copy / "policy" / "model.safetensors"
    noise = torch.Generator().manual_seed(0)
    tensors = {k: torch.randn(v.shape, generator=noise).to(v.dtype) for k, v in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    sizes = {p.relative_to(copy).as_posix(): p.stat().st_size for p in copy.rglob("*") if p.is_file()}
    (copy / "COMPLETE").unlink()
    sizes.pop("COMPLETE")
    (copy / "COMPLETE").write_text(json.dumps(sizes))
    copy.rename(newest.with_name(f"{int(newest.name) + 1:06d}"))


def test_nights(project, environment, worker, inbox):
    before = kept(project)
    folder = project / "reports" / "nightly"

    def reports() -> list[Path]:
        return sorted(folder.glob("*.json"), key=lambda report: report.stem)

    # the newest checkpoint is evaluated, and Prefect and W&B are told
    night = next_night(environment, worker, "Completed")
    (path,) = reports()
    first = NightlyReport.read(path)
    (run,) = project.glob("work/train-*")
    assert (first.run, first.iteration, first.date, first.fell) == (run.name, 2, path.stem, [])
    score = first.cells["arithmetic-long"].score
    assert score.accuracy > 0.5 and str(path) in night["state"]["message"]
    (artifact,) = ask(environment, "artifacts/filter", {"artifacts": {"key": {"like_": "nightly-"}}})
    assert artifact["key"] == f"nightly-{run.name}" and artifact["type"] == "table"
    assert json.loads(artifact["data"])[0]["accuracy"] == f"{score.accuracy:.3f}"
    wandb = json.loads((run / "wandb.json").read_text())["id"]
    logged = [p for p in project.glob(f"outputs/wandb/wandb/*-{wandb}/*.wandb") if b"nightly/" in p.read_bytes()]
    assert len(logged) == 1

    # and then there is nothing to do
    next_night(environment, worker, "NothingNew")
    assert reports() == [path]

    # not while others hold the GPU
    ask(environment, "v2/concurrency_limits/increment", GPU)
    degraded(project)
    next_night(environment, worker, "Busy")
    assert reports() == [path]
    ask(environment, "v2/concurrency_limits/decrement", GPU)

    # a score that fell is an event, and the automation makes it a notification
    next_night(environment, worker, "Completed")
    _, second = reports()
    report = NightlyReport.read(second)
    assert second.stem.startswith(report.date) and report.compared_with == path.stem
    assert report.fell == ["arithmetic-long"] and report.iteration == 3
    assert path.read_text() == json.dumps(first.to_json(), indent=2) + "\n"
    (note,) = wait_for(lambda: list(inbox[1]), worker)
    assert run.name in note["subject"] and "arithmetic-long" in note["body"] and str(second) in note["body"]
    span = {"since": "2020-01-01T00:00:00Z", "until": "2100-01-01T00:00:00Z"}
    asked = {"filter": {"event": {"name": ["spo.evaluation.fell"]}, "occurred": span}}
    (event,) = wait_for(lambda: ask(environment, "events/filter", asked)["events"], worker)
    assert event["resource"]["prefect.resource.id"] == f"spo.run.{run.name}"
    assert event["payload"]["cells"]["arithmetic-long"]["difference"] == report.cells["arithmetic-long"].difference < 0
    assert len(reports()) == 2 and len(inbox[1]) == 1 and kept(project) == before


@pytest.mark.exhaustive
def test_a_night_that_starts_late_drops_itself_but_not_one_that_a_person_starts(project, environment, worker):
    before = kept(project)
    params = project / "params" / "evaluate.yaml"
    text = params.read_text()
    change(project, {"evaluate": {"nightly": {"max_late_hours": 0.0001}}})
    assert "hours late" in next_night(environment, worker, "Dropped")["state"]["message"]
    by_hand = run_module(project, environment, "flows.nightly")
    assert by_hand.stdout.startswith("NothingNew: "), by_hand.stdout + by_hand.stderr
    params.write_text(text)
    assert kept(project) == before
