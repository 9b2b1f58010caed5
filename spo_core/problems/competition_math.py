r"""MATH (Hendrycks et al.) with the 12,000 / 500 split of PRM800K: its test questions are MATH-500.

Reads PRM800K's files (``problem``, ``solution``, ``answer``), the same exported as JSONL or as one list, and MATH-500
alone, for evaluation only. Sizes are the published 11500 / 500 / 500, less repeated questions. The hub's copy was not
downloaded: tests use rows with its fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spo_core.problems.answers import boxes
from spo_core.problems.rows import Hub
from spo_core.problems.templates import TEMPLATES
from spo_core.problems.text_set import Fields, TextSource, first_field


def _read(row: Mapping[str, Any]) -> Fields:
    """Fields of a row; the answer is a field of its own, or the solution's last box."""
    solution = first_field(row, ("solution",)) if row.get("solution") else ""
    boxed = [box for box in boxes(solution) if box]
    stated = row.get("answer") not in (None, "")
    answer = first_field(row, ("answer",)) if stated or not boxed else boxed[-1]
    return first_field(row, ("problem", "question")), answer, solution


MATH = TextSource(
    name="math",
    template=TEMPLATES["r1_boxed"],
    hub=Hub("nlile/hendrycks-MATH-benchmark", {"train": "train", "test": "test"}),
    files=(
        ("train", ("math_splits/train.jsonl", "math_train.json")),
        ("test", ("math_splits/test.jsonl", "math500.jsonl", "math500/test.jsonl", "MATH-500.jsonl", "math_500.jsonl")),
    ),
    read=_read,
    validation=500,
    test_alone=True,
)
