"""The page's section on evaluation: its tables, where the two graders disagree, and how the cells were measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from spo_core.evaluate.lighteval.details import Sample
from spo_core.evaluate.published_scores import PublishedRow, beside, source
from spo_core.evaluate.result import CellScore
from spo_core.observe.evaluations import (
    AFTER,
    BEFORE,
    Compared,
    EvaluatedCell,
    Evaluations,
    compare_cells,
    headline_cell,
    verdict,
)
from spo_core.verify import Outcome

MOST_LINES = 200


@dataclass(frozen=True, slots=True)
class Disagreements:
    """Completions of a cell that one grader calls correct and the other does not; the truncated ones come last."""

    checkpoint: str
    evaluated: EvaluatedCell
    lines: list[Sample]
    """The first MOST_LINES of these completions."""
    count: int
    truncated: int


@dataclass(frozen=True, slots=True)
class Fact:
    """A statement about the evaluations named by ``of``, or about all where that is empty."""

    name: str
    of: str
    value: Any


@dataclass(frozen=True, slots=True)
class Section:
    """Content of the section, for the page's template; empty where nothing was evaluated."""

    headline: CellScore | None
    """The cell that the page's headline is about."""
    verdict: str
    """Sentence on what became of the headline's score in training."""
    missing: list[str]
    """Checkpoints that were not evaluated."""
    rows: list[tuple[str, str, CellScore]]
    comparisons: list[Compared]
    disagreements: list[Disagreements]
    ungraded: list[str]
    """Cells that lighteval has no metric for."""
    published: dict[str, list[PublishedRow]]
    source: str
    """Source of the published scores."""
    facts: list[Fact]

    @property
    def sets(self) -> int:
        """Problem sets among the cells."""
        return len({score.protocol.problem_set for _, _, score in self.rows})


def section(evaluations: Evaluations) -> Section:
    """Make the section from the scores and their completions."""
    shown = evaluations.get(AFTER) or evaluations.get(BEFORE) or {}
    headline = headline_cell(shown) if shown else None
    compared = compare_cells(evaluations)
    rows = table_rows(evaluations)
    return Section(
        headline=shown[headline].score if headline else None,
        verdict=verdict(evaluations, compared.get(headline) if headline else None),
        missing=[name for name in (BEFORE, AFTER) if not evaluations.get(name)],
        rows=rows,
        comparisons=list(compared.values()),
        disagreements=disagreements(evaluations),
        ungraded=list(dict.fromkeys(name for name, _, score in rows if score.cross_check is None)),
        published=published_rows(evaluations),
        source=source(),
        facts=facts(evaluations),
    )


def table_rows(evaluations: Evaluations) -> list[tuple[str, str, CellScore]]:
    """List (cell, checkpoint, score), sorted by cell, so that checkpoints stand below each other."""
    names = dict.fromkeys(name for evaluated in evaluations.values() for name in evaluated)
    return [
        (name, checkpoint, evaluated[name].score)
        for name in names
        for checkpoint, evaluated in evaluations.items()
        if name in evaluated
    ]


def disagreements(evaluations: Evaluations) -> list[Disagreements]:
    """Disagreements of the two graders, for each cell that lighteval graded too, in the order of ``table_rows``."""
    found = []
    for name, checkpoint, _ in table_rows(evaluations):
        evaluated = evaluations[checkpoint][name]
        if evaluated.score.cross_check is None:
            continue
        differing = [sample for sample in evaluated.samples if sample.disagrees]
        differing.sort(key=lambda sample: sample.outcome is Outcome.TRUNCATED)
        truncated = sum(sample.outcome is Outcome.TRUNCATED for sample in differing)
        found.append(Disagreements(checkpoint, evaluated, differing[:MOST_LINES], len(differing), truncated))
    return found


def published_rows(evaluations: Evaluations) -> dict[str, list[PublishedRow]]:
    """Published models beside the final policy, by name of the cell; cells that nothing was published of are left
    out."""
    rows = {name: beside(cell.score) for name, cell in evaluations.get(AFTER, {}).items()}
    return {name: of_cell for name, of_cell in rows.items() if of_cell}


def facts(evaluations: Evaluations) -> list[Fact]:
    """State how the cells were measured: once what is equal in all, else by checkpoint, problem set or cell."""
    told = {
        (checkpoint, cell.score.protocol.problem_set, name): _told(cell.score)
        for checkpoint, evaluated in evaluations.items()
        for name, cell in evaluated.items()
    }
    names = dict.fromkeys(name for values in told.values() for name in values)
    return [fact for name in names for fact in _grouped(name, {at: values.get(name) for at, values in told.items()})]


Measurement = tuple[str, str, str]
"""Checkpoint, problem set, cell."""

_SPLITS: tuple[Callable[[Measurement], str], ...] = (
    lambda where: "",
    lambda where: where[0],
    lambda where: where[1],
    lambda where: where[2],
    lambda where: f"{where[2]}, {where[0]}",
)


def _grouped(name: str, values: Mapping[Measurement, Any]) -> Iterator[Fact]:
    """State ``values`` by the coarsest grouping of cells in which each group has a single value."""
    for split in _SPLITS:
        groups: dict[str, list[Any]] = {}
        for where, value in values.items():
            groups.setdefault(split(where), []).append(value)
        if all(value == group[0] for group in groups.values() for value in group):
            yield from (Fact(name, of, group[0]) for of, group in groups.items())
            return


def _told(score: CellScore) -> dict[str, Any]:
    protocol = score.protocol
    return {
        "suite": score.suite,
        "model digest": score.model_digest,
        "prompt digest": protocol.prompt_digest,
        "answer digest": protocol.answer_digest,
        "lighteval's prompt hash": score.lighteval_prompt_hash,
        "grader": protocol.grader,
        "engine": protocol.engine,
        "dtype": protocol.dtype,
        "samples": protocol.samples,
        "temperature": protocol.temperature,
        "top-p": protocol.top_p,
        "seed": score.seed,
    } | protocol.versions
