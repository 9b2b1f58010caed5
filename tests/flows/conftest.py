"""A copy of the project with params small enough to run whole, and a real Prefect server for each file of tests."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
import yaml

from flows.local_server import local_server
from spo_core.problems.prepare import prepare_splits
from spo_core.train.warmup import warm_up
from tasks.records import RunSpec
from tests.conftest import ROOT
from tests.flows.crash import Moment, Starts, starts

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


@contextmanager
def prefect_home(home: Path) -> Iterator[None]:
    """Prefect's folder for what runs in this process and what it starts, and no server."""
    before = os.environ.copy()
    os.environ |= {"PREFECT_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    os.environ.pop("PREFECT_API_URL", None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


@contextmanager
def prefect_server(home: Path) -> Iterator[dict[str, str]]:
    """A server on loopback; yields the environment of commands: W&B offline, two waiting threads at most."""
    database = home / "prefect.db"
    if _new_database:
        shutil.copy(_new_database[0], database)
    with ExitStack() as stack:
        with prefect_home(home):
            variables = stack.enter_context(local_server(home))
        if not _new_database:
            _new_database.append(_copied(database, home / "new.db"))
        yield variables | {"SPO_EVAL_PYTHON": str(EVALUATION_PYTHON), "OMP_NUM_THREADS": "1"}


_new_database: list[Path] = []  # as the first server here made it, which takes a third of a server's start


def _copied(database: Path, target: Path) -> Path:
    """A copy of a database that a server has open."""
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy)
    return target


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory) -> Iterator[dict[str, str]]:
    with prefect_server(tmp_path_factory.mktemp("prefect")) as variables:
        yield variables


@pytest.fixture(scope="module")
def environment(shared_server) -> Iterator[dict[str, str]]:
    """Environment of every command, with a server that has runs of other files of tests too (its start takes 20 s)."""
    with prefect_home(Path(shared_server["PREFECT_HOME"])):
        yield shared_server


@pytest.fixture(scope="module")
def own_server(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Environment of commands with a server of its own: where limits are made, or all is counted that a server has."""
    home = tmp_path_factory.mktemp("prefect")
    with prefect_server(home) as variables, prefect_home(home):
        yield variables


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
        short = yaml.safe_load((ROOT / "params" / "presets" / "short-arithmetic.yaml").read_text())
        for namespace, changes in _merged(short, SMALL).items():
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
    """Key by key, but for ``evaluate.contexts``, whose keys are names."""
    inner = {k for k in changes if isinstance(base.get(k), dict) and k != "contexts"}
    return base | {k: _merged(base[k], v) if k in inner else v for k, v in changes.items()}


def run_module(project: Path, environment: dict, module: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", module, *arguments]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command, cwd=project, env=environment | {"PATH": path}, capture_output=True, text=True, check=False
    )


def change(project: Path, changes: dict) -> None:
    """Write params into the project's files: its main run stays the main run."""
    for namespace, values in changes.items():
        path = project / "params" / f"{namespace}.yaml"
        path.write_text(yaml.safe_dump(_merged(yaml.safe_load(path.read_text()), {namespace: values}), sort_keys=False))


# for runs that are broken off
BROKEN_OFF = {
    "run": {"iterations": 8, "checkpoint_every": 2, "validate_every": 3, "wandb": {"mode": "disabled"}},
    # segments wait for the next iteration, and a wrong answer is worth more than none: every iteration trains
    "learn": {"replay": {"max_age": 2, "per_question": 3}, "epochs": 2},
    "verify": {"rewards": {"wrong": 0.5}},
}


@pytest.fixture(scope="session")
def warmed(new_project) -> Path:
    """A project with data and a first policy, not trained; the tests of it work in copies."""
    project = new_project()
    spec = RunSpec(str(project))
    prepare_splits(spec.params, spec.paths)
    warm_up(spec.params, spec.paths)
    return project


@pytest.fixture(scope="session")
def warmed_copy(warmed, tmp_path_factory) -> Callable[[dict], Path]:
    """Makes a copy of it, with these changes of params."""

    def make(changes: dict) -> Path:
        project = tmp_path_factory.mktemp("copy") / "project"
        shutil.copytree(warmed, project, symlinks=True)
        change(project, changes)
        return project

    return make


@pytest.fixture(scope="module")
def prepared(warmed_copy) -> Path:
    """One whose run takes long enough to be broken off."""
    return warmed_copy(BROKEN_OFF)


@pytest.fixture(scope="module")
def copy(prepared, tmp_path_factory) -> Callable[..., Path]:
    """Makes a copy of the prepared project, with these changes of params."""

    def make(changes: dict | None = None) -> Path:
        project = tmp_path_factory.mktemp("copy") / "project"
        shutil.copytree(prepared, project, symlinks=True)
        change(project, changes or {})
        return project

    return make


@pytest.fixture(scope="module")
def quick(prepared, environment, tmp_path_factory) -> Iterator[Starts]:
    """Starts of the flow that need no time for imports."""
    with starts(prepared, environment, tmp_path_factory.mktemp("starts")) as server:
        yield server


@pytest.fixture(scope="module")
def straight(copy, quick) -> tuple[Path, list[Moment]]:
    """The project after an uninterrupted run, and what happened in it."""
    project = copy()
    ended = quick.run(project)
    assert ended.status == 0, ended.stdout + ended.stderr
    return project, ended.trace
