"""``python -m flows.train --dry-run``: says what would be done, starts nothing, reads and writes nothing but params."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow
also = partial(pytest.param, marks=pytest.mark.exhaustive)


@pytest.fixture
def project(tmp_path) -> Path:
    """Params and Prefect's settings; no data, no checkpoint, no repository."""
    shutil.copytree(ROOT / "params", tmp_path / "params")
    shutil.copy(ROOT / "prefect.toml", tmp_path)
    return tmp_path


def dry_run(project: Path, *arguments: str) -> subprocess.CompletedProcess:
    """With a server that is not there: a flow that was started would fail."""
    nowhere = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "flows.train", "--dry-run", *arguments],
        cwd=project,
        env={k: v for k, v in os.environ.items() if k != "PREFECT_HOME"} | nowhere,
        capture_output=True,
        text=True,
        check=False,
    )


def everything(project: Path) -> dict[str, int]:
    return {str(path.relative_to(project)): path.stat().st_mtime_ns for path in project.rglob("*")}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], ["problem_set: \"arithmetic\"", "(338,016 parameters)"]),
        (["--preset", "rho1b-spo-tree-666"], ["segments: 512", "4,128", "3,351,744", "(1,100,048,384 parameters)"]),
        also(["--preset", "lora-24gb"], ["(1,100,048,384 parameters, 50,462,720 trained)", "targets: \"all-linear\""]),
        also(["--preset", "qwen1.5b-grpo"], ["context of 4,096 tokens", "problem_set: \"math\""]),
        also(["--set", "learn.epochs=3"], ["\n  epochs: 3\n"]),
    ],
)  # fmt: skip
def test_it_prints_and_leaves_the_folder_as_it_was(project, arguments, says):
    before = everything(project)
    result = dry_run(project, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    for text in says:
        assert text in result.stdout
    assert "\x1b" not in result.stdout and not result.stderr
    assert everything(project) == before


def test_a_mistake_is_refused_as_in_a_run(project):
    result = dry_run(project, "--preset", "rho1b-spo-tree-555")
    assert result.returncode == 2 and result.stderr.startswith("error: no preset 'rho1b-spo-tree-555'")
