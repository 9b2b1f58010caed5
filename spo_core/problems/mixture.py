"""Several problem sets as one: each question is asked, read and graded as its own set has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spo_core.config import DataParams, GraderName
from spo_core.errors import ConfigError, DataError
from spo_core.problems.base import ProblemSet, Question, Rule, Splits, check_disjoint, normalized
from spo_core.problems.templates import Template, encode_prompts


@dataclass(frozen=True, slots=True)
class Mixture:
    """A ProblemSet of problem sets; ``of`` gives that of a question, by the name with which its id begins."""

    data: DataParams
    parts: tuple[ProblemSet, ...]
    evaluation_only: bool = False

    def __post_init__(self) -> None:
        for part in self.parts:
            if part.evaluation_only:
                raise ConfigError(
                    f"data.mixture: {part.name} has a test split alone; evaluate it by evaluate.problem_sets"
                )

    @property
    def name(self) -> str:
        return self.data.problem_set

    @property
    def template(self) -> Template:
        """Raises ConfigError: each set has its own."""
        raise ConfigError(
            f"{self.name} is a mixture, whose sets have templates of their own; choose one of its sets here"
        )

    @property
    def rule(self) -> Rule:
        return self.parts[0].rule if len({part.rule for part in self.parts}) == 1 else "text"

    def of(self, question_id: str) -> ProblemSet:
        name = question_id.partition("-")[0]
        return next(part for part in self.parts if part.name == name)

    def check_source(self) -> None:
        for part in self.parts:
            part.check_source()

    def build(self) -> Splits:
        """Build every set's splits, one set behind the other. Training and validation questions that stand in the test
        split of any set, or in a set before, are left out and counted."""
        built = [part.build() for part in self.parts]
        for part, splits in zip(self.parts, built, strict=True):
            if "train" not in splits:
                raise DataError(f"data.mixture: {part.name} has no training questions here; see its data.source")
        seen = {normalized(row.question) for splits in built for row in splits["test"]}
        found: dict[str, list[Question]] = {"train": [], "validation": [], "test": []}
        dropped: dict[str, int] = {}
        for splits in built:
            for reason, count in splits.dropped.items():
                dropped[reason] = dropped.get(reason, 0) + count
            found["test"] += splits["test"]
            for split in ("validation", "train"):
                for row in splits[split]:
                    if normalized(row.question) in seen:
                        dropped["dropped_repeated_questions"] = dropped.get("dropped_repeated_questions", 0) + 1
                    else:
                        seen.add(normalized(row.question))
                        found[split].append(row)
        check_disjoint({split: found[split] for split in ("train", "validation")})
        return Splits(found, dropped)

    def test(self) -> list[Question]:
        return [row for part in self.parts for row in part.test()]

    def prompt(self, question: str) -> str:
        return self.template.fill(question)  # raises: a question alone does not tell its set

    def demonstration(self, row: Question, rng: np.random.Generator) -> str:
        return self.of(row.question_id).demonstration(row, rng)

    def extract(self, completion: str) -> str | None:
        raise ConfigError(f"{self.name} is a mixture: how an answer is stated is its sets' own")

    def alphabet(self) -> list[str] | None:
        """The tokens of all sets; None where one needs a tokenizer of bytes."""
        alphabets = [part.alphabet() for part in self.parts]
        if any(alphabet is None for alphabet in alphabets):
            return None
        return list(dict.fromkeys(token for alphabet in alphabets for token in alphabet or ()))


def parts_of(problem: ProblemSet) -> tuple[ProblemSet, ...]:
    """The sets of a mixture, or the one set."""
    return problem.parts if isinstance(problem, Mixture) else (problem,)


def set_of(problem: ProblemSet, question_id: str) -> ProblemSet:
    """The problem set of a question."""
    return problem.of(question_id) if isinstance(problem, Mixture) else problem


def weights_of(data: DataParams) -> dict[str, float]:
    """Shares of the sets of a mixture, by name, that add up to 1; of one set alone 1."""
    given = {part.data.problem_set: part.weight for part in data.mixture} or {data.problem_set: 1.0}
    return {name: weight / sum(given.values()) for name, weight in given.items()}


def grader_of(data: DataParams, name: str, usual: GraderName) -> GraderName:
    """Grader of a set's answers."""
    own = {part.data.problem_set: part.grader for part in data.mixture}
    return own.get(name) or usual


def described(problem: ProblemSet) -> dict[str, Any]:
    """How a problem set asks and compares, as plain JSON, for the identity of runs; of a mixture by set."""
    if not isinstance(problem, Mixture):
        return problem.template.described() | {"rule": problem.rule}
    return {
        part.name: described(part) | {"weight": own.weight, "grader": own.grader}
        for part, own in zip(problem.parts, problem.data.mixture, strict=True)
    }


def encode_questions(problem: ProblemSet, tokenizer: Any, rows: Sequence[Question]) -> list[list[int]]:
    """Token ids of each question's prompt, in its own set's template."""
    encoded: dict[str, Iterator[list[int]]] = {}
    for part in parts_of(problem):
        questions = [row.question for row in rows if set_of(problem, row.question_id) is part]
        encoded[part.name] = iter(encode_prompts(part.template, tokenizer, questions))
    return [next(encoded[set_of(problem, row.question_id).name]) for row in rows]
