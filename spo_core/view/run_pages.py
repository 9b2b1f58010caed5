"""Pages of runs: all of them, several compared, and one with its curves, health and iterations."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import Response

from spo_core.errors import DataError
from spo_core.paths import Paths
from spo_core.runs.directory import step_seconds
from spo_core.view import iterations
from spo_core.view.catalogue import (
    Run,
    differing,
    find_run,
    find_runs,
    peculiar,
    planned_iterations,
    seed_groups,
    written,
)
from spo_core.view.figures import AXES, compared_figure, metrics_of, run_figures
from spo_core.view.health import signs
from spo_core.view.rendering import data, page, table
from spo_core.view.scored import find_scored

router = APIRouter()
MOST_COMPARED = 40
REWARD, ACCURACY = "rollout/reward", "eval/validation_accuracy"


def project_paths(request: Request) -> Paths:
    return request.app.state.paths


Project = Annotated[Paths, Depends(project_paths)]
Csv = Annotated[str, Query(alias="format")]


@router.get("/")
def runs_page(paths: Project, csv: Csv = "") -> Response:
    """All runs, those written last first."""
    runs = find_runs(paths)
    apart = peculiar(runs)
    rows = [_run_row(run, paths) | {"apart": apart[run.key]} for run in runs]
    if csv:
        names = ("state", "iterations", "planned", "reward", "accuracy", "tokens", "apart")
        return table("runs", ("run", *names), [[row["run"].key, *(row[name] for name in names)] for row in rows])
    return page("runs.html", rows=rows, root=str(paths.root), running=any(run.running for run in runs))


def _run_row(run: Run, paths: Paths) -> dict[str, Any]:
    last = run.last_row()
    return {
        "run": run,
        "state": run.state,
        "iterations": last.get("iteration", 0),
        # of a finished run it is what was done; of a stopped one params/ may say something else by now
        "planned": planned_iterations(run, paths.root) if run.running else None,
        "reward": last.get(REWARD),
        "accuracy": last.get(ACCURACY),
        "tokens": last.get("generated_tokens"),
        "written": written(run),
    }


@router.get("/compare")
def compare_page(
    paths: Project,
    run: Annotated[list[str], Query()] = [],  # noqa: B006  FastAPI's own way to take several
    metric: str = REWARD,
    x: str = "tokens",
    csv: Csv = "",
) -> Response:
    """Curves of chosen runs, with a band over those that differ in their seed alone, and the params that differ."""
    chosen = _chosen(paths, run)
    table_of = differing(chosen)
    if csv:
        return table("params", ("param", *(r.key for r in chosen)), [(key, *row) for key, row in table_of.items()])
    rows = {r.key: r.rows() for r in chosen}
    metrics = list(dict.fromkeys(name for own in rows.values() for name in metrics_of(own)))
    return page("compare.html", runs=chosen, differing=table_of, metrics=metrics, metric=metric, x=x, axes=AXES)


@router.get("/compare/figures.json")
def compare_figures(
    paths: Project,
    run: Annotated[list[str], Query()] = [],  # noqa: B006
    metric: str = REWARD,
    x: str = "tokens",
) -> Response:
    """The figure of ``compare_page``."""
    chosen = _chosen(paths, run)
    groups = [(_group_name(group), [r.rows() for r in group]) for group in seed_groups(chosen)]
    return data({"figures": {"": [compared_figure(groups, metric, x if x in AXES else "tokens")]}})


def _chosen(paths: Paths, keys: list[str]) -> list[Run]:
    if not keys:
        raise DataError("choose some runs on the first page")
    if len(keys) > MOST_COMPARED:
        raise DataError(f"{len(keys)} runs are too many to compare; choose at most {MOST_COMPARED}")
    known = {key: run for run in find_runs(paths) for key in (run.key, run.published) if key}
    missing = [key for key in keys if key not in known]
    if missing:
        raise DataError(f"{missing[0]}: no such run here")
    return list({run.key: run for run in map(known.__getitem__, keys)}.values())


def _group_name(group: list[Run]) -> str:
    return group[0].title


@router.get("/run/{place}/{name}")
def run_page(paths: Project, place: str, name: str, x: str = "iteration", csv: Csv = "") -> Response:
    """One run."""
    run = find_run(paths, f"{place}/{name}")
    rows = run.rows()
    if csv:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        return table(f"{run.title}-metrics", columns, [[row.get(column) for column in columns] for row in rows])
    kept = run.iteration_folders()
    return page(
        "run.html",
        run=run,
        rows=rows,
        planned=planned_iterations(run, paths.root) if run.running else None,
        signs=signs(rows, run.params, _silent(run)),
        seconds=sum(map(step_seconds, rows)),
        last=rows[-1] if rows else {},
        kept=kept,
        numbers=sorted({row["iteration"] for row in rows} | kept.keys(), reverse=True),
        by_number={row["iteration"]: row for row in rows},
        written=written(run),
        evaluated=[scored for scored in find_scored(paths) if scored.key in (run.key, run.published)],
        x=x,
        axes=AXES,
    )


def _silent(run: Run) -> float | None:
    """Share of the newest recorded iteration's questions that train nothing."""
    for folder in reversed(run.iteration_folders().values()):
        if (folder / iterations.CREDITS).is_file():
            try:
                return iterations.silent_share(iterations.question_rows(folder))
            except DataError:  # it is being written: the one before has the same meaning
                continue
    return None


@router.get("/run/{place}/{name}/figures.json")
def run_curves(paths: Project, place: str, name: str, x: str = "iteration") -> Response:
    """The curves of ``run_page`` by subject."""
    run = find_run(paths, f"{place}/{name}")
    return data({"figures": run_figures(run.rows(), x if x in AXES else "iteration")})
