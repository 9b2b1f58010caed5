"""Problem sets read from files or the hub: a :class:`TextSource` describes one, :class:`TextSet` reads any."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spo_core.config import DataParams
from spo_core.errors import DataError
from spo_core.problems.answers import unusable_gold
from spo_core.problems.base import Question, Rule, Splits, check_disjoint, extract_answer, normalized
from spo_core.problems.rows import Hub, Row, file_rows, find_file
from spo_core.problems.templates import Template, chat_template, named_template

log = logging.getLogger(__name__)
Fields = tuple[str, str, str]  # question, answer, solution


def first_field(row: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Text of the first of these fields with text, a list's items joined by commas. Raises ValueError without one."""
    for name in names:
        value = row.get(name)
        items = value if isinstance(value, list) else [value]
        if any(isinstance(i, float) and not math.isfinite(i) for i in items):
            raise ValueError(f"field {name} is no finite number")
        if items and all(isinstance(i, (str, int, float)) and not isinstance(i, bool) for i in items):
            text = ", ".join(str(i) for i in items)
            if text.strip():
                return text
    there = ", ".join(name if name.isprintable() else repr(name) for name in map(str, row)) or "none"
    raise ValueError(f"no text in field {' or '.join(names)}; its fields are {there}")


def plain_fields(row: Mapping[str, Any]) -> Fields:
    """Fields of a row under the names that most published files use."""
    has_solution = any(row.get(name) for name in ("solution", "rationale"))
    return (
        first_field(row, ("question", "problem")),
        first_field(row, ("answer", "final_answer")),
        first_field(row, ("solution", "rationale")) if has_solution else "",
    )


@dataclass(frozen=True, slots=True)
class TextSource:
    """Description of a problem set: where its rows come from, and how they are read and asked."""

    name: str
    template: Template
    """Default template, which ``data.template`` replaces."""
    hub: Hub | None = None
    """Source of rows without ``data.source``."""
    files: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(Split, names of files beyond the usual ones)."""
    usual_names: bool = True
    """Whether ``train.jsonl``, ``test.jsonl`` and the like are looked for too."""
    read: Callable[[Mapping[str, Any]], Fields] = plain_fields
    """Function from a row to its question, answer and solution; raises ValueError where they are missing."""
    rule: Rule = "math"
    validation: int = 200
    """Questions held out of train unless ``data.validation`` says another number."""
    evaluation_only: bool = False
    test_alone: bool = False
    """Whether files without a train split are accepted, for evaluation only."""

    def names(self, split: str) -> tuple[str, ...]:
        """Names of files to look for in ``data.source``, in this order."""
        usual = (f"{split}.jsonl", f"{split}.json", f"{self.name}_{split}.jsonl", f"{self.name}/{split}.jsonl")
        return (*(usual if self.usual_names else ()), *dict(self.files).get(split, ()))


@dataclass(frozen=True, slots=True)
class TextSet:
    """A problem set read from files or from the hub."""

    source: TextSource
    data: DataParams

    def __post_init__(self) -> None:
        _ = self.template  # an unknown name is refused before anything starts

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def template(self) -> Template:
        if self.data.chat is not None:
            return chat_template(self.data.chat)
        return self.source.template if self.data.template is None else named_template(self.data.template)

    @property
    def rule(self) -> Rule:
        return self.source.rule

    @property
    def evaluation_only(self) -> bool:
        return self.source.evaluation_only

    @property
    def hub(self) -> Hub | None:
        """The hub's dataset that rows come from; None where they come from files."""
        return self.source.hub if self.data.source is None else None

    def check_source(self) -> None:
        for split in ("test",) if self.evaluation_only or self.source.test_alone else ("train", "test"):
            if self.hub is None:
                self._file(split)
            else:
                next(self.hub.rows(split, self.data.revision), None)  # downloads it, unless it lies in the hub's cache

    def build(self) -> Splits:
        test = self._questions("test")
        if self.evaluation_only:
            train = None
        elif self.source.test_alone and self.hub is None and self._found("train") is None:
            log.warning("%s holds no train split of %s: it will do for evaluation only", self.data.source, self.name)
            train = None
        else:
            train = self._questions("train")
        return split_up(self.data, train, test, self.source.validation)

    def test(self) -> list[Question]:
        return self._questions("test")[: self.data.test]

    def _folder(self) -> Path:
        return Path(self.data.source or "").expanduser()

    def _found(self, split: str) -> Path | None:
        return find_file(self._folder(), self.source.names(split))

    def _file(self, split: str) -> Path:
        found = self._found(split)
        if found is None:
            first, *others = self.source.names(split)
            instead = f", or instead {' or '.join(others)} beside it" if others else ""
            raise DataError(
                f"{self._folder() / first}: no such file; data.source must name the folder that holds it, "
                f"the {split} split of {self.name}{instead}"
            )
        return found

    def _questions(self, split: str) -> list[Question]:
        rows = file_rows(self._file(split)) if self.hub is None else self.hub.rows(split, self.data.revision)
        return read_questions(rows, self.name, split, self.source.read)

    def prompt(self, question: str) -> str:
        return self.template.fill(question)

    def extract(self, completion: str) -> str | None:
        return extract_answer(self.template, completion)

    def demonstration(self, row: Question, rng: np.random.Generator) -> str:
        return demonstration(self.template, row)

    def alphabet(self) -> None:
        return None


def read_questions(
    rows: Iterator[Row], name: str, split: str, read: Callable[[Mapping[str, Any]], Fields]
) -> list[Question]:
    """Turn all rows into questions. Raises DataError, naming the place, for a malformed row, and without any row."""
    questions = []
    for where, number, row in rows:
        try:
            if not isinstance(row, Mapping):
                raise ValueError("not a JSON object")
            question, answer, solution = read(row)
            if (why := unusable_gold(answer)) is not None:
                raise ValueError(f"its answer {why}")
            (question + answer + solution).encode()  # raises for lone surrogates, which JSON reads but cannot write
            questions.append(Question(f"{name}-{split}-{number:05d}", question, answer.strip(), solution))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{where}: not a row of {name}: {error}") from None
    if not questions:
        raise DataError(f"{name}: its {split} split holds no question")
    return questions


def split_up(data: DataParams, train: list[Question] | None, test: list[Question], validation: int) -> Splits:
    """Hold ``validation`` questions out of train, and keep test questions and repeated ones out of both.

    Questions left out are counted, and logged unless ``data`` asks for it. The test split stays as published, even
    where it repeats a question. Raises DataError where no question is left to train on.
    """
    splits = {"test": test}
    dropped: dict[str, int] = {}
    if train is not None:
        pool = _without_copies(train, {normalized(row.question) for row in test}, dropped)
        held_out = data.validation or validation
        if held_out >= len(pool):
            raise DataError(f"data.validation {held_out} leaves none of {len(pool)} questions to train on")
        chosen = set(np.random.default_rng([data.seed, 1]).permutation(len(pool))[:held_out].tolist())
        splits = {
            "train": [row for i, row in enumerate(pool) if i not in chosen],
            "validation": [row for i, row in enumerate(pool) if i in chosen],
            "test": test,
        }
        check_disjoint(splits)
    for split, most in (("train", data.train), ("test", data.test)):
        beyond = len(splits.get(split, [])) - (most or sys.maxsize)
        if beyond > 0:
            dropped[f"dropped_beyond_data_{split}"] = beyond
            splits[split] = splits[split][:most]
    return Splits(splits, dropped)


def _without_copies(train: list[Question], in_test: set[str], dropped: dict[str, int]) -> list[Question]:
    """Training questions that are not in test, each once; the others are logged and counted in ``dropped``."""
    counts = {"dropped_test_questions": 0, "dropped_repeated_questions": 0}
    seen: set[str] = set()
    pool = []
    for row in train:
        text = normalized(row.question)
        if text in in_test:
            counts["dropped_test_questions"] += 1
        elif text in seen:
            counts["dropped_repeated_questions"] += 1
        else:
            seen.add(text)
            pool.append(row)
    for reason, count in counts.items():
        if count:
            log.warning("left out of train: %d %s", count, reason.removeprefix("dropped_").replace("_", " "))
    dropped |= counts
    return pool


def demonstration(template: Template, row: Question) -> str:
    """A row's solution as a completion, with the answer in the form that the template asks for."""
    solution = row.solution
    if extract_answer(template, solution) is None:
        body = solution.rpartition("\n####")[0] or solution.removeprefix(f"#### {row.answer}")
        stated = f"#### {row.answer}" if template.answer == "hashes" else f"The answer is $\\boxed{{{row.answer}}}$."
        solution = f"{body}\n{stated}" if body else stated
    if template.chat is not None:  # a turn begins and ends at once
        return solution
    return f"{'' if template.text.endswith(chr(10)) else chr(10)}{solution}\n"
