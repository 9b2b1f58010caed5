"""Prepared splits of a problem set, published as one folder of JSONL files."""

from __future__ import annotations

from typing import Any

from spo_core.config import Params
from spo_core.files import atomic_directory
from spo_core.paths import Paths
from spo_core.problems import problem_set
from spo_core.problems.base import write_split


def prepare_splits(params: Params, paths: Paths) -> dict[str, Any]:
    """Build and write all splits; the number of questions of each. Nothing is written where the source is refused."""
    splits = problem_set(params.data.problem_set).build(params.data)
    with atomic_directory(paths.data(params.data.problem_set)) as folder:
        for split, rows in splits.items():
            write_split(folder / f"{split}.jsonl", rows)
    return {f"{split}_questions": len(rows) for split, rows in splits.items()}
