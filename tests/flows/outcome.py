"""What a training run leaves in its project."""

from __future__ import annotations

import json
from pathlib import Path

from spo_core.system.files import file_digest, folder_digest, read_json


def work(project: Path) -> Path:
    (folder,) = project.glob("work/train-*")
    return folder


def result(project: Path) -> dict:
    """Everything a finished run leaves, without what depends on the machine's speed."""
    run = work(project)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    published = read_json(project / "metrics" / "train.json")
    records = project / "metrics" / "train"
    return {
        "final": folder_digest(project / "checkpoints" / "final"),
        "best": folder_digest(project / "checkpoints" / "best"),
        # policy, optimizer, replay buffer, state
        "checkpoints": {p.name: folder_digest(p) for p in sorted((run / "checkpoints").iterdir())},
        "bests": {p.name: folder_digest(p) for p in sorted((run / "best").iterdir())},
        "questions": {p.parent.name: file_digest(p) for p in sorted(run.glob("iterations/*/questions.json"))},
        "trees": {p.parent.name: file_digest(p) for p in sorted(run.glob("iterations/*/trees.parquet"))},
        "rows": [{k: v for k, v in row.items() if not k.startswith("timing/")} for row in rows],
        "published": {k: v for k, v in published.items() if k != "seconds"},
        "records": {p.name: file_digest(p) for p in records.iterdir() if p.suffix == ".parquet"},
        "plot": (project / "plots" / "train.csv").read_text(),
    }


def leftovers(project: Path) -> list[str]:
    """Temporary files and folders, which no finished run may leave."""
    places = ("work", "checkpoints", "metrics", "plots")
    found = [p for place in places for p in (project / place).rglob(".*") if p.name.endswith((".tmp", ".old"))]
    return sorted(str(p.relative_to(project)) for p in found)


def complete_checkpoints(project: Path) -> list[int]:
    """Numbers of those that say so, rising."""
    return sorted(int(p.parent.name) for p in project.glob("work/train-*/checkpoints/[0-9]*/COMPLETE"))


def newest_checkpoint(project: Path) -> int:
    """0 where there is none."""
    return max(complete_checkpoints(project), default=0)
