"""Sampled trees as rows of a table, a segment each: what the policy wrote and what the update made of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spo_core.system.files import read_json

Decode = Callable[[Sequence[int]], str]
COLUMNS = (
    "question",
    "tree",
    "segment",
    "parent",
    "depth",
    "text",
    "tokens",
    "mean logprob",
    "value",
    "advantage",
    "share in mask",
    "reward",
    "outcome",
)


@dataclass(frozen=True, slots=True)
class TreeTable:
    """Rows under COLUMNS; None stands for what a segment has not. The prompts, as segment 0, are left out."""

    rows: list[list[Any]]


def tree_table(folder: Path, trees: int, decode: Decode) -> TreeTable:
    """Build the table of the first ``trees`` trees in an iteration's folder. Raises OSError where a file is missing."""
    sampled = pq.read_table(folder / "trees.parquet")
    starts = np.flatnonzero(pc.equal(sampled["node"], 0).to_numpy(zero_copy_only=False))
    stop = int(starts[trees]) if trees < len(starts) else sampled.num_rows
    credited = pq.read_table(folder / "credits.parquet").slice(0, stop).to_pylist()
    questions = {row["question_id"]: row["question"] for row in read_json(folder / "questions.json")}
    rows, tree = [], -1
    for node, credit in zip(sampled.slice(0, stop).to_pylist(), credited, strict=True):
        if node["node"] == 0:
            tree += 1
            continue
        strongest = max(credit["advantages"], key=abs, default=0.0)  # SPO-chain has none at tokens that were certain
        rows.append(
            [
                questions[node["question_id"]],
                tree,
                node["node"],
                node["parent"],
                node["depth"],
                decode(node["token_ids"]),
                len(node["token_ids"]),
                _known(float(np.mean(node["logprobs"]))),
                _known(credit["value"]),
                strongest if node["trainable"] else None,
                float(np.mean(credit["mask"])),
                node["reward"],
                node["outcome"] or None,
            ]
        )
    return TreeTable(rows)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
