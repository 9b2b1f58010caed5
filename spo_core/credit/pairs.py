"""Credited trees as two files of a folder: an iteration's, a checkpoint's replay buffer, and what ranks are handed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
