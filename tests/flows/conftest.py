"""A copy of the project with params small enough to run whole, and a real Prefect server for each file of tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flows.local_server import local_server
from tests.conftest import ROOT

EVALUATION_PYTHON = Path(os.environ.get("SPO_EVAL_PYTHON") or ROOT / ".venv-evaluate" / "bin" / "python")
SMALL = {
    "run": {"iterations": 3, "checkpoint_every": 1, "threads": 1},
    "data": {"train": 300, "validation": 20, "test": 12},
    "policy": {"warmup": {"steps": 120, "batch_size": 8}},
    "rollout": {"questions": 4, "branch_factors": [3, 2, 2], "max_concurrency": 32},
    "learn": {"optimizer_steps": 2},
    "evaluate": {"samples": 2, "batch_size": 16},
}

needs_evaluation = pytest.mark.skipif(
    not EVALUATION_PYTHON.exists(), reason="lighteval's environment is missing; make install creates it"
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Environment of every command: a Prefect server on loopback, W&B offline, two waiting threads at most."""
    home = tmp_path_factory.mktemp("prefect")
    before = os.environ.copy()
    os.environ |= {"PREFECT_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    os.environ.pop("PREFECT_API_URL", None)
    try:
        with local_server(home) as variables:
            yield variables | {"SPO_EVAL_PYTHON": str(EVALUATION_PYTHON), "OMP_NUM_THREADS": "1"}
    finally:
        os.environ.clear()
        os.environ |= before


@pytest.fixture(scope="session")
def new_project(tmp_path_factory) -> Callable[[], Path]:
    """Makes a fresh clone-like copy of the working tree, under git and DVC, with the small params committed."""

    def make() -> Path:
        project = tmp_path_factory.mktemp("clone") / "project"
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for name in listed.stdout.splitlines():
            if (ROOT / name).is_file() and not name.startswith(("metrics/", "plots/", "outputs/", "dvc.lock")):
                (project / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, project / name)
        for namespace, changes in SMALL.items():
            path = project / "params" / f"{namespace}.yaml"
            path.write_text(
                yaml.safe_dump(_merged(yaml.safe_load(path.read_text()), {namespace: changes}), sort_keys=False)
            )
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "small"]):
            subprocess.run(["git", *command], cwd=project, check=True)
        return project

    return make


def _merged(base: dict, changes: dict) -> dict:
    return {
        k: _merged(v, changes[k]) if isinstance(v, dict) and k in changes else changes.get(k, v)
        for k, v in base.items()
    } | {k: v for k, v in changes.items() if k not in base}


def run_module(project: Path, environment: dict, module: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", module, *arguments]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command, cwd=project, env=environment | {"PATH": path}, capture_output=True, text=True, check=False
    )
