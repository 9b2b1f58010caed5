"""OlympiadBench, its mathematics in English with open answers and without images: 674 questions for evaluation.

Fields are ``question``, and the lists ``final_answer`` and ``solution``: several answers are joined with "or", and the
first solution is kept. Neither files nor the hub's copy were downloaded: tests use rows with their fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spo_core.problems.rows import Hub
from spo_core.problems.templates import TEMPLATES
from spo_core.problems.text_set import Fields, TextSource, first_field


def _read(row: Mapping[str, Any]) -> Fields:
    solutions = row.get("solution") or [""]
    solution = solutions[0] if isinstance(solutions, list) else solutions
    answers = row.get("final_answer")
    if isinstance(answers, list) and len(answers) > 1 and all(isinstance(answer, str) for answer in answers):
        row = {**row, "final_answer": r" \text{ or } ".join(answers)}  # the grader accepts them in any order
    return first_field(row, ("question", "problem")), first_field(row, ("final_answer", "answer")), str(solution)


OLYMPIAD_BENCH = TextSource(
    name="olympiad_bench",
    template=TEMPLATES["r1_boxed"],
    hub=Hub("Hothan/OlympiadBench", {"test": "train"}, config="OE_TO_maths_en_COMP"),
    files=(("test", ("OE_TO_maths_en_COMP.json", "OE_TO_maths_en_COMP.jsonl", "olympiadbench/test.jsonl")),),
    read=_read,
    evaluation_only=True,
)
