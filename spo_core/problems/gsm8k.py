"""GSM8K: 7,473 training questions, 1,319 of test. Its own JSONL files have ``question`` and ``answer``.

Sizes as published: 7100 / 373 / 1319. The hub's copy has the same fields.
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
    """The answer stands after ``####`` of the solution, calculator annotations are removed."""
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
