"""Sampled trees as rows of a table, a segment each: what the policy wrote and what the update made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spo_core.credit.pairs import CreditedTree
from spo_core.observe.tree_view import Decode
from spo_core.system.files import read_json

Rows = list[list[Any]]  # each row in the order of COLUMNS
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


def tree_rows(trees: Sequence[CreditedTree], questions: Mapping[str, str], decode: Decode) -> Rows:
    """Make a row for each segment, in the order of COLUMNS; None where a segment has no such value. Prompts, which are
    segment 0, are left out. ``questions`` holds their texts by id."""
    return [
        [
            questions[tree.question_id],
            number,
            index,
            node.parent,
            tree.depths[index],
            decode(node.token_ids.tolist()),
            len(node.token_ids),
            _known(float(node.logprobs.astype(np.float64).mean())),
            _known(float(credit.values[index])),
            credit.advantage(index) if node.trainable else None,
            float(credit.masks[index].mean()),
            _known(node.reward),
            node.outcome or None,
        ]
        for number, (tree, credit) in enumerate(trees)
        for index, node in enumerate(tree.nodes)
        if index
    ]


def asked(folder: Path) -> dict[str, str]:
    """Read the texts of an iteration's questions by id, from its folder."""
    return {row["question_id"]: row["question"] for row in read_json(folder / "questions.json")}


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
