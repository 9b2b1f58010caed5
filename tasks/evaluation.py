"""Evaluation of one policy in one cell."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from spo_core.config import digest
from spo_core.evaluate.cell import Evaluated, evaluate_cell, publish_cell
from spo_core.evaluate.models import Model
from spo_core.evaluate.result import CellScore
from spo_core.evaluate.suite import Cell
from spo_core.observe.bars import bar
from spo_core.observe.view_link import cell_address
from tasks.limits import concurrency_slot
from tasks.links import link_view
from tasks.records import RunSpec


@task(name="evaluate", cache_policy=NO_CACHE, persist_result=False)
def measure(spec: RunSpec, model: Model, cell: Cell, wait_seconds: float | None = None) -> Evaluated:
    """Evaluate a policy in one cell, holding a slot of ``run.gpu_limit``. Raises LimitBusy after ``wait_seconds``
    without one; None waits for ever."""
    params = spec.params
    with (
        concurrency_slot(params.run.gpu_limit, wait_seconds),
        bar(f"eval {model.name} {cell.name}", None, unit="completion") as progress,
    ):

        def show(done: int, total: int) -> None:
            progress.total = total
            progress.update(done - progress.n)

        return evaluate_cell(params, spec.inputs, model, cell, show)


@task(name="publish score", cache_policy=NO_CACHE, persist_result=False)
def publish_score(spec: RunSpec, model: Model, evaluated: Evaluated) -> Path:
    """Publish a score; returns its file."""
    target = score_file(spec, model, evaluated.score)
    publish_cell(evaluated, target)
    if spec.owns(model.name):
        name, cell = spec.run_name or "main", evaluated.score.cell
        address = cell_address(spec.run_name, model.name, cell)
        link_view(spec.paths, address, f"{name}-{model.name}-{cell}", f"Every completion of {model.name} in {cell}")
    return target


def score_file(spec: RunSpec, model: Model, score: CellScore) -> Path:
    """File of a score: among the run's metrics, or below outputs/evaluations for other policies and suites."""
    if spec.owns(model.name):
        return spec.paths.evaluation(model.name, score.cell)
    changed = f"-{digest(spec.overrides)[:8]}" if spec.overrides else ""
    return spec.paths.foreign_evaluation(model.label, f"{score.suite}{changed}", score.cell)
