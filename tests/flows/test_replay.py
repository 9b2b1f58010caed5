"""Recording and replaying on the command line: the same bits, in places of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flows.train import command
from spo_core.errors import ConfigError
from spo_core.system.files import folder_digest, read_json


def train(project: Path, environment: dict, *calls: str) -> str:
    """Call the command with these arguments, one after another in one process: importing takes the longest."""
    code = "\n".join(["from flows.train import command", *(f"command({arguments})" for arguments in calls)])
    recorded = {"DVC_STAGE": "train", "PYTHONPATH": str(project)}  # as under dvc repro, which records by itself
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project,
        env=environment | recorded,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def published(project: Path) -> dict[str, int]:
    """The main run's outputs and working directory: when each file was written."""
    places = ("checkpoints", "metrics", "plots", "work/train-*")
    files = [p for place in places for top in project.glob(place) for p in (top, *top.rglob("*")) if p.is_file()]
    return {str(p.relative_to(project)): p.stat().st_mtime_ns for p in files}


@pytest.mark.slow
def test_rollouts_are_recorded_and_replayed(warmed_copy, environment):
    project = warmed_copy({})
    train(project, environment, "")
    (ordinary,) = project.glob("work/train-*")
    main = published(project)
    assert "checkpoints/final/model.safetensors" in main
    printed = train(
        project,
        environment,
        f"replay={str(ordinary.relative_to(project))!r}",
        "rollouts_only=True, set_=['run.iterations=2']",
        "rollouts_only=True",
        "replay=str(*__import__('pathlib').Path('work').glob('rollouts-*')), set_=['learn.epochs=2'], name='two'",
    )
    assert published(project) == main, "the main run was touched"

    replayed, final = project / "outputs" / "runs" / "replay", project / "checkpoints" / "final"
    assert folder_digest(final) != folder_digest(project / "checkpoints" / "warmup"), "nothing was trained"
    assert folder_digest(replayed / "checkpoints" / "final") == folder_digest(final)
    a, b = (read_json(folder / "metrics" / "train.json") for folder in (project, replayed))
    assert a | {"seconds": 0} == b | {"seconds": 0}
    a, b = ((folder / "metrics" / "train" / "credits.parquet").read_bytes() for folder in (project, replayed))
    assert a == b

    (rollouts,) = project.glob("work/rollouts-*")
    assert [line.split(";")[0] for line in printed.splitlines() if line.startswith("rollouts")] == [
        f"rollouts of {count} iterations: {rollouts}" for count in (2, 3)
    ]
    files = {"trees.parquet", "credits.parquet", "questions.json", "rollout.json", "metrics.json", "COMPLETE"}
    assert {p.name for p in (rollouts / "iterations" / "000003").iterdir()} > files
    metrics = read_json(project / "outputs/runs/two-replay/metrics/train.json")
    assert metrics["iterations"] == 3 and metrics["skipped_iterations"] < 3
    assert sorted(p.name for p in (project / "outputs" / "runs").iterdir()) == ["replay", "two-replay"]


def test_what_cannot_go_together_is_refused():
    for options in ({"replay": "work/train-1"}, {"rollouts_only": True}):
        with pytest.raises(ConfigError, match="--dry-run tells of ordinary runs"):
            command(dry_run=True, **options)
