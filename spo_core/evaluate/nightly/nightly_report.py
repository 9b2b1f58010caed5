"""Reports of nightly evaluations: a policy's scores, and whether they fell since the report before.

The reports are the only memory. ``reports/nightly/<date>.json`` names the policy it scored, so that none is scored
twice; ``reports/nightly/<date>/<cell>.parquet`` keeps every completion, so that the next report can compare question
by question when the working directories are gone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from spo_core.config import RESOURCES, Params
from spo_core.errors import DataError
from spo_core.evaluate.cell import Evaluated
from spo_core.evaluate.comparison import ComparisonError, compare
from spo_core.evaluate.lighteval.details import read_details
from spo_core.evaluate.models import Model
from spo_core.evaluate.nightly.newest import Found
from spo_core.evaluate.result import CellScore
from spo_core.paths import Paths
from spo_core.system.files import publish, read_json, write_json

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NightlyCell:
    """A cell's score, compared with that of the report before."""

    score: CellScore
    difference: float | None
    """Accuracy less that of the report before, over the same questions; None where the two do not compare."""
    standard_error: float | None
    """Standard error of the paired difference."""
    not_compared: str | None
    """Why there is no difference, or no standard error of it."""
    fell: bool
    """Whether accuracy fell by more than ``evaluate.nightly.standard_errors`` standard errors of the difference."""


@dataclass(frozen=True, slots=True)
class NightlyReport:
    """Report of one nightly evaluation."""

    date: str
    started: str
    """ISO 8601, with the timezone."""
    finished: str
    run: str
    """Name of the training run's working directory."""
    iteration: int
    model_digest: str
    suite: str
    asked: dict[str, Any]
    """Params that decide what is asked and how it is graded: ``asked(params)``."""
    compared_with: str | None
    """Name of the report before, without its suffix."""
    cells: dict[str, NightlyCell]

    @property
    def fell(self) -> list[str]:
        """Names of the cells whose accuracy fell."""
        return [name for name, cell in self.cells.items() if cell.fell]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"fell": self.fell}

    @classmethod
    def read(cls, path: Path) -> NightlyReport:
        """Read a report's JSON file. Raises DataError for any other file."""
        try:
            content = read_json(path)
            content.pop("fell")
            cells = {
                name: NightlyCell(**cell | {"score": CellScore.from_json(json.dumps(cell["score"]))})
                for name, cell in content.pop("cells").items()
            }
            return cls(cells=cells, **content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, DataError) as error:
            raise DataError(f"{path}: no nightly report of this version ({error})") from None


def asked(params: Params) -> dict[str, Any]:
    """Params that decide what is asked and how it is graded, as plain JSON."""
    engine = params.evaluate.engine.model_dump(mode="json", exclude={*RESOURCES, "servers"})
    found = {
        **params.evaluate.model_dump(mode="json", exclude={"nightly", "batch_size", "engine"}),
        "engine": engine,
        "data": params.data.model_dump(mode="json", include={"problem_set", "template", "jsonl", "arithmetic", "test"}),
        "verify": params.verify.model_dump(mode="json", include={"grader", "seconds"}),
    }
    return json.loads(json.dumps(found))


def reports(folder: Path) -> dict[str, NightlyReport]:
    """All reports in a folder by their name without suffix, the oldest first; unreadable ones are logged."""
    found = {}
    for path in folder.glob("*.json"):
        try:
            found[path.stem] = NightlyReport.read(path)
        except DataError as error:
            log.warning("%s; it is passed over", error)
    return dict(sorted(found.items(), key=lambda item: datetime.fromisoformat(item[1].started)))


def already_evaluated(folder: Path, model_digest: str, params: Params) -> str | None:
    """Name of a report that scored this policy under the same ``asked(params)``, or None."""
    same = asked(params)
    for name, report in reports(folder).items():
        if report.model_digest == model_digest and report.asked == same:
            return name
    return None


def make_report(
    paths: Paths,
    params: Params,
    found: Found,
    model: Model,
    evaluated: Mapping[str, Evaluated],
    *,
    date: str,
    started: datetime,
    finished: datetime,
) -> NightlyReport:
    """Compare the scores, by cell name, with the last report of the same training run and suite."""
    folder = paths.nightly(date).parent
    before = {
        name: report
        for name, report in reports(folder).items()
        if (report.run, report.suite) == (found.run.name, params.evaluate.suite)
    }
    last = next(reversed(before), None)
    limit = params.evaluate.nightly.standard_errors
    return NightlyReport(
        date=date,
        started=started.isoformat(timespec="seconds"),
        finished=finished.isoformat(timespec="seconds"),
        run=found.run.name,
        iteration=found.iteration,
        model_digest=model.digest,
        suite=params.evaluate.suite,
        asked=asked(params),
        compared_with=last,
        cells={
            name: _beside(one, name, folder / last if last else None, before[last] if last else None, limit)
            for name, one in evaluated.items()
        },
    )


def _beside(now: Evaluated, name: str, details: Path | None, before: NightlyReport | None, limit: float) -> NightlyCell:
    """Compare one cell with the report ``before``, whose completions are in the folder ``details``."""
    if before is None or details is None:
        return NightlyCell(now.score, None, None, "the first report of this training run", False)
    if name not in before.cells:
        return NightlyCell(now.score, None, None, f"report {details.name} has no such cell", False)
    try:
        samples = read_details(details / f"{name}.parquet")
        paired = compare(before.cells[name].score, samples, now.score, read_details(now.details))
    except (ComparisonError, OSError) as error:
        return NightlyCell(now.score, None, None, str(error), False)
    if paired.standard_error is None:
        return NightlyCell(now.score, paired.difference, None, "one question has no standard error", False)
    fell = paired.difference < -limit * paired.standard_error
    return NightlyCell(now.score, paired.difference, paired.standard_error, None, fell)


def free_name(paths: Paths, date: str) -> str:
    """A report's name that is not taken: ``2026-11-23``, else ``2026-11-23-2`` and so on."""
    number = 1
    while paths.nightly(name := date if number == 1 else f"{date}-{number}").exists():
        number += 1
    return name


def write_report(target: Path, report: NightlyReport, evaluated: Mapping[str, Evaluated]) -> None:
    """Write the completions to a folder of the report's name, then its JSON file."""
    for cell, one in evaluated.items():
        publish(one.details, target.with_suffix("") / f"{cell}.parquet")
    write_json(target, report.to_json())


def table(report: NightlyReport) -> list[dict[str, Any]]:
    """The report as a table of text, a row for each cell."""

    def shown(value: float | None, digits: str) -> str:
        return "" if value is None else format(value, digits)

    return [
        {
            "cell": name,
            "accuracy": shown(cell.score.accuracy, ".3f"),
            "± s.e.": shown(cell.score.standard_error, ".3f"),
            "majority": shown(cell.score.majority, ".3f"),
            "truncated": shown(cell.score.truncated, ".3f"),
            "difference": shown(cell.difference, "+.3f"),
            "± s.e. of it": shown(cell.standard_error, ".3f"),
            "": "fell" if cell.fell else cell.not_compared or "",
        }
        for name, cell in report.cells.items()
    ]


def metrics(report: NightlyReport) -> dict[str, float]:
    """The report's numbers as ``nightly/...`` metrics for trackers."""
    row: dict[str, float] = {"nightly/iteration": report.iteration}
    for name, cell in report.cells.items():
        numbers = {
            "accuracy": cell.score.accuracy,
            "standard_error": cell.score.standard_error,
            "majority": cell.score.majority,
            "truncated": cell.score.truncated,
            "mean_tokens": cell.score.tokens.mean,
            "difference": cell.difference,
        }
        row |= {f"nightly/{name}/{key}": value for key, value in numbers.items() if value is not None}
    return row


def fall(report: NightlyReport, path: Path) -> dict[str, Any]:
    """Payload of the event about the cells that fell; ``path`` is the report's file."""
    cells = {name: report.cells[name] for name in report.fell}
    return {
        "run": report.run,
        "iteration": report.iteration,
        "report": str(path),
        "cells": {
            name: {
                "accuracy": cell.score.accuracy,
                "difference": cell.difference,
                "standard_error": cell.standard_error,
            }
            for name, cell in cells.items()
        },
        "message": f"{report.run}, iteration {report.iteration}: "
        + ", ".join(
            f"{name} {c.score.accuracy:.3f} ({c.difference:+.3f} ± {c.standard_error:.3f})" for name, c in cells.items()
        ),
    }
