"""CollegeMath: 2,818 questions from textbooks, for evaluation. Fields ``question`` and ``answer``.

Neither files nor the hub's copy were downloaded: tests use rows with their fields.
"""

from __future__ import annotations

from spo_core.problems.rows import Hub
from spo_core.problems.templates import TEMPLATES
from spo_core.problems.text_set import TextSource

COLLEGE_MATH = TextSource(
    name="college_math",
    template=TEMPLATES["r1_boxed"],
    hub=Hub("qq8933/College_Math_Test", {"test": "test"}),
    files=(("test", ("college_math.jsonl", "collegeMath.jsonl", "full_test.jsonl")),),
    evaluation_only=True,
)
