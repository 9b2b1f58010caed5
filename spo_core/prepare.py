"""Prepared splits of a problem set, published as one folder of JSONL files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spo_core.config import Params
from spo_core.errors import DataError
from spo_core.files import atomic_directory
from spo_core.paths import Paths
from spo_core.problems import problem_set
from spo_core.problems.base import write_split


def check_source(params: Params) -> None:
    """Raise DataError where ``data.source`` does not hold the problem set's files."""
    problem = problem_set(params.data.problem_set)
    if problem.source_files and params.data.source is None:
        raise DataError(f"data.source is not set: name the folder with {' and '.join(problem.source_files)}")
    for name in problem.source_files:
        path = Path(params.data.source or "").expanduser() / name
        if not path.is_file():
            raise DataError(f"{path}: no such file; data.source must hold {' and '.join(problem.source_files)}")


def prepare_splits(params: Params, paths: Paths) -> dict[str, Any]:
    """Build and write all splits; the number of questions of each. Nothing is written where the source is refused."""
    splits = problem_set(params.data.problem_set).build(params.data)
    with atomic_directory(paths.data(params.data.problem_set)) as folder:
        for split, rows in splits.items():
            write_split(folder / f"{split}.jsonl", rows)
    return {f"{split}_questions": len(rows) for split, rows in splits.items()}
