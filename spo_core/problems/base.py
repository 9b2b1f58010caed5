"""What a problem set gives: its splits, its prompt, its stop rule, and how an answer is read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from spo_core.config import DataParams
from spo_core.errors import DataError
from spo_core.files import read_jsonl

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Question:
    """One row of a prepared split. ``solution`` is a worked answer where the source has one."""

    question_id: str
    question: str
    answer: str
    solution: str = ""


class ProblemSet(Protocol):
    """One module of this package. Text only: it knows no tokenizer and no model."""

    name: str
    source_files: tuple[str, ...]
    """Files that ``data.source`` must hold; none where the problem set is generated."""

    def build(self, params: DataParams) -> dict[str, list[Question]]:
        """All splits, without a question in two of them. Raises DataError for a missing or malformed source."""
        ...

    def prompt(self, question: str) -> str: ...

    def demonstration(self, row: Question, params: DataParams, rng: np.random.Generator) -> str:
        """A completion to imitate in warm-up; drawn anew each time where the problem set generates them."""
        ...

    def extract(self, completion: str) -> str | None:
        """The answer given in a completion, None where there is none."""
        ...

    def alphabet(self) -> list[str] | None:
        """Tokens of a tokenizer made for this problem set; None where only bytes will do."""
        ...


def answer_after_hashes(completion: str) -> str | None:
    """Text after the last ``####`` to the end of its line, stripped (the GSM8K convention)."""
    _, marker, rest = completion.rpartition("####")
    answer = rest.strip().splitlines()[0].strip() if marker and rest.strip() else ""
    return answer or None


def normalized(question: str) -> str:
    """A question's text for comparison between splits: case and white space do not count."""
    return re.sub(r"\s+", " ", question).strip().casefold()


def check_disjoint(splits: dict[str, list[Question]]) -> None:
    """Raise DataError if two splits share a question."""
    seen: dict[str, str] = {}
    for split, rows in splits.items():
        for row in rows:
            other = seen.setdefault(normalized(row.question), split)
            if other != split:
                raise DataError(f"question {row.question_id} of split {split} also stands in {other}: {row.question!r}")


def write_split(path: Path, rows: Sequence[Question]) -> None:
    path.write_text("".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read_split(data_dir: Path, split: str) -> list[Question]:
    """Read a prepared split; raises DataError where it is missing, empty or malformed."""
    path = data_dir / f"{split}.jsonl"
    if not path.is_file():
        raise DataError(f"{path}: no such dataset; prepare it with python -m flows.prepare (or dvc repro prepare)")
    rows = []
    for number, line in read_jsonl(path):
        try:
            rows.append(Question(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}:{number}: not a prepared question ({error}); prepare it again") from None
    if not rows:
        raise DataError(f"{path}: holds no question; prepare it again")
    return rows
