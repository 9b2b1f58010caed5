"""GSM8K: 7,473 training questions, split into 7100 / 373 as published, and 1,319 test questions.

The original JSONL files and the hub's copy have the fields ``question`` and ``answer``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from spo_core.problems.answers import after_hashes
from spo_core.problems.rows import Hub
from spo_core.problems.templates import TEMPLATES
from spo_core.problems.text_set import Fields, TextSource, first_field


def _read(row: Mapping[str, Any]) -> Fields:
    """Fields of a row; the answer follows ``####`` in the solution, whose calculator annotations are removed."""
    solution = re.sub(r"<<.*?>>", "", first_field(row, ("answer",)))
    answer = after_hashes(solution)
    if answer is None:
        raise ValueError("no answer after ####")
    return first_field(row, ("question",)), answer, solution


GSM8K = TextSource(
    name="gsm8k",
    template=TEMPLATES["math_task"],
    hub=Hub("openai/gsm8k", {"train": "train", "test": "test"}, config="main"),
    read=_read,
    validation=373,
)
