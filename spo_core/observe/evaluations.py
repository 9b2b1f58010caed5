"""The evaluated cells of a run, before and after training: which compare, and what changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from spo_core.config import Params
from spo_core.errors import DataError
from spo_core.evaluate.comparison import Comparison, ComparisonError, compare, differences
from spo_core.evaluate.lighteval.details import Sample, read_details
from spo_core.evaluate.models import folder_model
from spo_core.evaluate.result import CellScore
from spo_core.evaluate.suite import Cell, cells
from spo_core.observe.formatting import number, probability, signed
from spo_core.paths import Paths

BEFORE, AFTER = "warmup", "final"


@dataclass(frozen=True, slots=True)
class EvaluatedCell:
    """A cell's score and the completions that it was given for."""

    score: CellScore
    samples: list[Sample]
    details: str
    """Parquet file of the completions, as the page names it."""


Evaluations = Mapping[str, Mapping[str, EvaluatedCell]]
"""Evaluated cells by checkpoint, then by the cell's name, in the order of the suite."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A cell before and after training."""

    cell: str
    comparison: Comparison | None
    reasons: tuple[str, ...] = ()
    """Reasons why the two scores must not be compared; empty where they were."""

    @property
    def word(self) -> str:
        """A word for what became of the accuracy, which claims no more than the figures do."""
        if self.comparison is None:
            return "not compared"
        if not self.comparison.told_apart:
            return "not told apart"
        return "rose" if self.comparison.difference > 0 else "fell"


def read_evaluations(params: Params, paths: Paths) -> dict[str, dict[str, EvaluatedCell]]:
    """Read the evaluations of the first and the final policy, and of the best one if ``checkpoints/best`` was
    evaluated.

    Raises DataError naming a file that no evaluation wrote, or that is of another policy or suite than the present one.
    """
    found = {checkpoint: _read(params, paths, checkpoint) for checkpoint in (BEFORE, AFTER)}
    published = all(path.is_file() for path in evaluation_files(params, paths, "best"))
    if published and (paths.checkpoint("best") / "config.json").is_file():
        best = _read(params, paths, "best")
        present = folder_model("best", paths.checkpoint("best")).digest
        if all(cell.score.model_digest == present for cell in best.values()):  # otherwise it is of an earlier training
            found["best"] = best
    return found


def evaluation_files(params: Params, paths: Paths, checkpoint: str) -> list[Path]:
    """List the files of scores and details of every cell of the suite."""
    scores = [paths.evaluation(checkpoint, cell.name) for cell in cells(params)]
    return [path for score in scores for path in (score, score.with_suffix(".parquet"))]


def _read(params: Params, paths: Paths, checkpoint: str) -> dict[str, EvaluatedCell]:
    found, present = {}, folder_model(checkpoint, paths.checkpoint(checkpoint)).digest
    for cell in cells(params):
        path = paths.evaluation(checkpoint, cell.name)
        try:
            score = CellScore.from_json(path.read_text(encoding="utf-8"))
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        if checkpoint != "best":
            _check_present(path, score, cell, params, present)
        details = path.with_suffix(".parquet")
        found[cell.name] = EvaluatedCell(score, read_details(details), details.relative_to(paths.root).as_posix())
    return found


def _check_present(path: Path, score: CellScore, cell: Cell, params: Params, digest: str) -> None:
    """Raise DataError where a score is of another policy than the present one, or of what was once the suite."""
    asked = params.evaluate
    for what, found, now in (
        ("policy", score.model_digest[:12], digest[:12]),
        ("context length", score.protocol.context_length, cell.context_length),
        ("samples", score.protocol.samples, asked.samples),
        ("temperature", score.protocol.temperature, asked.temperature),
        ("top_p", score.protocol.top_p, asked.top_p),
        ("seed", score.seed, asked.seed),
    ):
        if found != now:
            raise DataError(f"{path}: it is of {what} {found}, and now it is {now}; evaluate again")


def headline_cell(evaluated: Mapping[str, EvaluatedCell]) -> str:
    """Name of the longest context of the first problem set, which the headline is about; there must be a cell."""
    protocols = {name: cell.score.protocol for name, cell in evaluated.items()}
    first = next(iter(protocols.values())).problem_set
    of_set = [name for name, protocol in protocols.items() if protocol.problem_set == first]
    return max(of_set, key=lambda name: protocols[name].context_length)


def compare_cells(evaluations: Evaluations) -> dict[str, Compared]:
    """Compare each cell of the final policy with that of the first one, question by question; empty without both. Cells
    that must not be compared have reasons instead.
    """
    before, after = evaluations.get(BEFORE), evaluations.get(AFTER)
    if not before or not after:
        return {}
    return {name: _compared(name, before.get(name), cell) for name, cell in after.items()}


def _compared(name: str, before: EvaluatedCell | None, after: EvaluatedCell) -> Compared:
    if before is None:
        return Compared(name, None, (f"{BEFORE} was not evaluated in it",))
    if reasons := differences(before.score.protocol, after.score.protocol):
        return Compared(name, None, tuple(reasons))
    try:
        return Compared(name, compare(before.score, before.samples, after.score, after.samples))
    except ComparisonError as error:
        return Compared(name, None, (str(error),))


def verdict(evaluations: Evaluations, compared: Compared | None) -> str:
    """Say in a sentence what the comparison of the headline's cell shows, and no more."""
    missing = [label for name, label in ((BEFORE, "before"), (AFTER, "after")) if not evaluations.get(name)]
    if missing or compared is None:
        return f"There is no evaluation {' or '.join(missing)} training, so this page claims no change."
    change = compared.comparison
    if change is None:
        return f"The evaluations do not compare, so this page claims no change: {'; '.join(compared.reasons)}."
    if change.standard_error is None or change.interval is None:
        asked = "a single question" if change.questions == 1 else f"{change.questions} questions"
        return f"Accuracy changed by {signed(change.difference)} on {asked}, which may be chance."
    low, high = change.interval
    evidence = f"95 % interval {signed(low)} to {signed(high)}"
    if change.p_value is not None:
        evidence += f", McNemar's p {probability(change.p_value)}"
    error = number(change.standard_error)
    if change.told_apart:
        return f"Accuracy {compared.word} by {number(abs(change.difference))} ± {error} ({evidence})."
    return (
        f"Accuracy changed by {signed(change.difference)} ± {error} ({evidence}): "
        "this evaluation does not tell the policies apart."
    )
