"""Credited trees as two files of a folder: an iteration's, a checkpoint's replay buffer, and what ranks are handed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spo_core.credit import Credit, read_credits, write_credits
from spo_core.tree import RolloutTree, read_trees, write_trees

CreditedTree = tuple[RolloutTree, Credit]


def write_pairs(folder: Path, pairs: Sequence[CreditedTree]) -> None:
    """Write trees.parquet and credits.parquet."""
    trees = [tree for tree, _ in pairs]
    write_trees(folder / "trees.parquet", trees)
    write_credits(folder / "credits.parquet", trees, [credit for _, credit in pairs])


def read_pairs(folder: Path) -> list[CreditedTree]:
    """Read what ``write_pairs`` wrote, bit for bit. Raises OSError where a file is missing."""
    trees = read_trees(folder / "trees.parquet")
    return list(zip(trees, read_credits(folder / "credits.parquet", trees), strict=True))


def read_places(path: Path) -> list[tuple[str, range]]:
    """Read the question of every tree of a file, and the rows that the tree has there and its credit in the other."""
    with pq.ParquetFile(path) as file:
        table = file.read(columns=["question_id", "node"])
    starts = np.flatnonzero(table["node"].to_numpy() == 0)
    questions = table["question_id"].take(pa.array(starts, pa.int64())).to_pylist()
    bounds = pairwise([*starts.tolist(), table.num_rows])
    return [(question, range(*own)) for question, own in zip(questions, bounds, strict=True)]
