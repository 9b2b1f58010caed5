"""Prepares the splits of a problem set and publishes them as one folder of JSONL files."""

from __future__ import annotations

from typing import Any

from spo_core.config import Params
from spo_core.paths import Paths
from spo_core.problems import problem_set
from spo_core.problems.base import write_split
from spo_core.system.files import atomic_directory

REASONS = {
    "dropped_test_questions": "training questions that stand in test",
    "dropped_repeated_questions": "training questions that are repeated",
    "dropped_beyond_data_train": "beyond data.train",
    "dropped_beyond_data_test": "beyond data.test",
}


def check_source(params: Params) -> None:
    """Raise DataError where the problem set's files are missing, or the hub does not give them."""
    problem_set(params.data).check_source()


def prepare_splits(params: Params, paths: Paths) -> dict[str, Any]:
    """Build and write all splits; returns the number of questions in each, and of those left out, by reason.

    Raises DataError for a missing or malformed source, and then writes nothing.
    """
    splits = problem_set(params.data).build()
    with atomic_directory(paths.data(params.data.problem_set)) as folder:
        for split, rows in splits.items():
            write_split(folder / f"{split}.jsonl", rows)
    return {f"{split}_questions": len(rows) for split, rows in splits.items()} | splits.dropped


def describe(counts: dict[str, Any]) -> list[str]:
    """Lines of text for the counts of :func:`prepare_splits`, one for each split and each reason that left some out."""
    splits = [(key.removesuffix("_questions"), n) for key, n in counts.items() if not key.startswith("dropped_")]
    lines = [f"  {split:<10} {n:>7,} questions" for split, n in splits]
    return lines + [f"  left out: {counts[key]:,} {reason}" for key, reason in REASONS.items() if counts.get(key)]
