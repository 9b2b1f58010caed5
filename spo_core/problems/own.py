"""A problem set described by params alone: ``data.jsonl`` names the files, their fields, a template and a rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spo_core.config import DataParams, JsonlParams
from spo_core.problems.templates import own_template
from spo_core.problems.text_set import Fields, TextSet, TextSource, first_field


def own_set(data: DataParams, jsonl: JsonlParams) -> TextSet:
    """The problem set that ``data.jsonl`` describes. Raises ConfigError for an unknown or unusable template."""

    def read(row: Mapping[str, Any]) -> Fields:
        solution = first_field(row, (jsonl.solution,)) if jsonl.solution else ""
        return first_field(row, (jsonl.question,)), first_field(row, (jsonl.answer,)), solution

    files = {"train": jsonl.train, "test": jsonl.test}
    source = TextSource(
        name=data.problem_set,
        template=own_template(jsonl),
        files=tuple((split, (file,)) for split, file in files.items() if file is not None),
        usual_names=False,
        read=read,
        rule=jsonl.rule,
        evaluation_only=jsonl.train is None,
    )
    return TextSet(source, data)
