"""AIME 2024: 30 questions for evaluation, answers from 0 to 999. Fields ``problem`` and ``answer``.

The hub's copy calls its only split train. It was not downloaded: tests use rows with its fields.
"""

from __future__ import annotations

from spo_core.problems.rows import Hub
from spo_core.problems.templates import TEMPLATES
from spo_core.problems.text_set import TextSource

AIME24 = TextSource(
    name="aime24",
    template=TEMPLATES["r1_boxed"],
    hub=Hub("HuggingFaceH4/aime_2024", {"test": "train"}),
    files=(("test", ("aime24.jsonl", "aime_2024.jsonl", "AIME2024.jsonl", "train.jsonl")),),
    evaluation_only=True,
)
