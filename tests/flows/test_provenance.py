"""What the chain says of a real run is what the server, W&B's folder, git and the data say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spo_core.system.files import folder_digest
from tests.flows.conftest import change
from tests.flows.crash import Starts, starts
from tests.flows.test_deploy import ask

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(own_server) -> dict[str, str]:
    return own_server


@pytest.fixture(scope="module")
def untrained(new_project) -> Path:
    folder = new_project()
    change(folder, {"policy": {"warmup": {"steps": 10}}, "run": {"wandb": {"mode": "offline", "trees_every": 2}}})
    commit = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qam", "short"]
    subprocess.run(commit, cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def commands(untrained, environment, tmp_path_factory) -> Iterator[Starts]:
    with starts(untrained, environment, tmp_path_factory.mktemp("starts")) as server:
        yield server


@pytest.fixture(scope="module")
def project(untrained, commands) -> Path:
    """Prepared, warmed up and trained by the commands."""
    for stage in ("prepare", "warmup", "train"):
        result = commands.run(untrained, module=f"flows.{stage}")
        assert result.status == 0, result.stdout + result.stderr
    return untrained


def flow_run(environment: dict, flow: str) -> dict:
    """The only one of that flow which the server has."""
    (found,) = ask(environment, "flow_runs/filter", {"flows": {"name": {"any_": [flow]}}})
    return found


def artifact(environment: dict, key: str) -> dict:
    found = ask(environment, "artifacts/latest/filter", {"artifacts": {"key": {"any_": [key]}}})
    assert len(found) == 1, found
    return found[0]


def test_the_chain_names_what_the_server_w_and_b_git_and_the_data_know(project, commands, environment):
    result = commands.run(project, "final", "--json", module="flows.provenance")
    assert result.status == 0, result.stderr
    chain = json.loads(result.stdout)
    server = flow_run(environment, "train")
    (attempt,) = chain["attempts"]
    assert (attempt["caller"]["flow_run_id"], attempt["caller"]["flow_run_name"]) == (server["id"], server["name"])
    assert server["id"] in attempt["page"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True)
    assert chain["code"]["revision"] == attempt["code_revision"] == head.stdout.strip()
    assert chain["code"]["same_now"] is True and chain["params_now"] == {}
    assert chain["data"] == {"digest": folder_digest(project / "data/arithmetic"), "here": "data/arithmetic"}
    assert chain["policy"]["digest"] == folder_digest(project / "checkpoints/final")
    assert chain["policy"]["iteration"] == 3
    assert list(project.glob(f"outputs/wandb/wandb/offline-run-*-{chain['wandb']['id']}"))
    assert chain["first_policy"]["digest"] == folder_digest(project / "checkpoints/warmup")
    (warmed,) = chain["first_policy"]["warmup"]["attempts"]
    assert warmed["caller"]["flow_run_id"] == flow_run(environment, "warmup")["id"]


def test_without_work_the_chain_is_the_same(project, commands, environment, tmp_path):
    """As in a clean clone after dvc pull."""
    clone = tmp_path / "clone"
    shutil.copytree(project, clone, symlinks=True, ignore=lambda folder, _: ["work"] if folder == str(project) else [])
    chains = [commands.run(one, "final", "--json", module="flows.provenance") for one in (project, clone)]
    before, after = (json.loads(chain.stdout) for chain in chains)
    assert before["run"].pop("here") and not after["run"].pop("here")
    for key in ("policy", "run", "params", "data", "code", "attempts", "wandb"):
        assert before[key] == after[key], key
    printed = commands.run(clone, "checkpoints/final", module="flows.provenance").stdout
    assert flow_run(environment, "train")["id"] in printed and before["wandb"]["id"] in printed


def test_prefect_s_pages_have_the_run_s_iterations_and_progress(project, environment):
    (metrics,) = project.glob("work/train-*/metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    found = artifact(environment, "iterations-main")
    table = json.loads(found["data"]) if isinstance(found["data"], str) else found["data"]
    assert [row["iteration"] for row in table] == [3, 2, 1]
    assert [row["generated tokens"] for row in table] == [row["generated_tokens"] for row in reversed(rows)]
    assert float(artifact(environment, "progress-main")["data"]) == 100
    assert found["flow_run_id"] == flow_run(environment, "train")["id"]


def test_the_report_is_linked_from_its_flow_run_and_from_nowhere_else(project, environment):
    code = (
        "import sys; from pathlib import Path; from prefect import flow; from tasks.links import link_report\n"
        "page = Path(sys.argv[1])\n"
        "link_report(page, 'outside')\n"
        "flow(name='linked')(lambda: link_report(page, 'My run'))()"
    )
    page = project / "report" / "index.html"
    result = run_python(project, environment, code, str(page))
    assert result.returncode == 0, result.stderr
    found = artifact(environment, "report-my-run")
    assert page.resolve().as_uri() in found["data"]
    assert found["flow_run_id"] == flow_run(environment, "linked")["id"]
    assert not ask(environment, "artifacts/filter", {"artifacts": {"key": {"any_": ["report-outside"]}}})


def run_python(project: Path, environment: dict, code: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
