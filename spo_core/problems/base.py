"""The protocol of problem sets: splits, prompts, how an answer is read, and by which rule it is compared."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from spo_core.config import DataParams
from spo_core.errors import ConfigError, DataError
from spo_core.problems.answers import after_hashes, final_answer
from spo_core.problems.templates import Template
from spo_core.system.files import parse_json, read_jsonl

SPLITS = ("train", "validation", "test")
Rule = Literal["math", "text", "game24"]


@dataclass(frozen=True, slots=True)
class Question:
    """One row of a prepared split. ``solution`` is a worked answer where the source has one."""

    question_id: str
    question: str
    answer: str
    solution: str = ""


class Splits(dict[str, list[Question]]):
    """Questions by the name of their split, and how many rows of the source were left out, by reason."""

    def __init__(self, splits: dict[str, list[Question]], dropped: dict[str, int] | None = None) -> None:
        super().__init__(splits)
        self.dropped = dropped or {}


class ProblemSet(Protocol):
    """A problem set with its params. Text only: it knows no tokenizer and no model."""

    @property
    def name(self) -> str: ...

    @property
    def template(self) -> Template: ...

    @property
    def rule(self) -> Rule:
        """How answers are compared: as mathematics, as text, or as an expression that makes 24."""
        ...

    @property
    def evaluation_only(self) -> bool:
        """Whether there is a test split only."""
        ...

    def check_source(self) -> None:
        """Raise DataError where a file or hub dataset is missing; called before anything starts."""
        ...

    def build(self) -> Splits:
        """Build all splits; no question is in two of them. Raises DataError for a missing or malformed source."""
        ...

    def test(self) -> list[Question]:
        """The test split alone, as ``build`` has it. Raises DataError where ``build`` would."""
        ...

    def prompt(self, question: str) -> str:
        """The text before the completion; :func:`spo_core.problems.templates.encode_prompt` gives its token ids. Of a
        chat template the tokenizer has the text: see ``Template.resolved``."""
        ...

    def demonstration(self, row: Question, rng: np.random.Generator) -> str:
        """A completion to imitate in warm-up; a generated problem set draws a new one with each call."""
        ...

    def extract(self, completion: str) -> str | None:
        """The answer given in a completion, None where there is none."""
        ...

    def alphabet(self) -> list[str] | None:
        """Tokens for a tokenizer of characters; None where the problem set's texts need one of bytes."""
        ...


@runtime_checkable
class ShowsMistakes(Protocol):
    """A problem set that knows which step of a wrong completion went wrong first."""

    def mistake(self, question: str, completion: str) -> tuple[int, int] | None:
        """Begin and end of that step among the completion's characters; None where every step is right."""
        ...


class Generated:
    """Base of problem sets whose questions are generated; subclasses have ``data``, ``name``, ``rule``, ``template``.

    Raises ConfigError where ``data.template`` names another template than its own.
    """

    data: DataParams
    name: ClassVar[str]
    rule: ClassVar[Rule]
    template: ClassVar[Template]
    evaluation_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.data.template not in (None, self.template.name):
            raise ConfigError(f"data.template {self.data.template}: {self.name} has its own; set it to null")
        if self.data.chat is not None:
            raise ConfigError(f"data.chat: {self.name} has a template of its own; set it to null")

    def check_source(self) -> None:
        """Do nothing: this problem set has no source to check."""

    def build(self) -> Splits:
        raise NotImplementedError

    def test(self) -> list[Question]:
        return self.build()["test"]

    def prompt(self, question: str) -> str:
        return self.template.fill(question)


def extract_answer(template: Template, completion: str) -> str | None:
    """The answer of a completion in the form that a template asks for; None where there is none."""
    return after_hashes(completion) if template.answer == "hashes" else final_answer(completion)


_SPELLINGS = str.maketrans("‘’‛“”„‟‐‑‒–—−", '\'\'\'""""' + "-" * 6)
_NO_MEANING = re.compile(
    r"\\(?:left|right|bigg?[lr]?|displaystyle|q?quad|thinspace)(?![a-zA-Z])|\\[!,;:()\[\]]|[\s$~]|\\(?=\s|$)"
)
_BETWEEN_DIGITS = re.compile(r"(?<=[0-9])\s+(?=[0-9])")  # 3 4/5 is not 34/5
_RAISED = {ord(raised): f"^{digit}" for digit, raised in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
_FRACTION = re.compile(r"\\[dt]frac(?![a-zA-Z])")


def normalized(question: str) -> str:
    """A question's text without what does not tell questions apart, for comparing splits.

    Left out are case, white space but between digits, spellings of quotes and dashes, and LaTeX that only sets type.
    """
    text = unicodedata.normalize("NFKC", _BETWEEN_DIGITS.sub("\N{SYMBOL FOR SPACE}", question.translate(_RAISED)))
    text = text.translate(_SPELLINGS).casefold()
    return _NO_MEANING.sub("", _FRACTION.sub(r"\\frac", text)).rstrip(".?:")


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
    """Read a prepared split. Raises DataError where it is missing, empty or malformed."""
    path = data_dir / f"{split}.jsonl"
    if not path.is_file():
        if any(data_dir.glob("*.jsonl")):
            raise DataError(
                f"{data_dir}: prepared without a {split} split, for evaluation only; to train, choose another "
                "data.problem_set, or a data.source that holds training questions"
            )
        raise DataError(f"{path}: no such dataset; prepare it with python -m flows.prepare (or dvc repro prepare)")
    rows = []
    for number, line in read_jsonl(path):
        try:
            rows.append(Question(**parse_json(line)))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}:{number}: not a prepared question ({error}); prepare it again") from None
    if not rows:
        raise DataError(f"{path}: holds no question; prepare it again")
    return rows
