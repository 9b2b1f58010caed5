"""Evaluates a policy in the cells of a suite, problem sets × contexts, or compares two policies."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Annotated

import typer
from prefect import flow

from flows import cli
from spo_core.errors import ConfigError
from spo_core.evaluate.cell import check_contexts, check_evaluation, chosen_cells
from spo_core.evaluate.comparison import Comparison, compare
from spo_core.evaluate.lighteval.details import read_details
from spo_core.evaluate.lighteval.process import lighteval_shared
from spo_core.evaluate.models import refer
from spo_core.evaluate.result import CellScore
from spo_core.observe.scores import print_comparisons, print_scores
from spo_core.observe.view_link import invitation
from tasks.cluster import cluster
from tasks.evaluation import measure, publish_score
from tasks.records import RunSpec
from tasks.versioning import find_model, record_outputs

STAGES = ("warmup", "final")  # checkpoints that dvc.yaml evaluates


@flow(name="evaluate")
def evaluate(
    model: str = "final",
    preset: str | None = None,
    overrides: tuple[str, ...] = (),
    name: str | None = None,
    suite: str | None = None,
    cell: str | None = None,
) -> list[CellScore]:
    """Score a policy in every cell of the suite, or in one, and publish the scores."""
    spec = RunSpec.here(preset, overrides, name, suite=suite, evaluates=True)
    check_evaluation(spec.params, spec.inputs, own=spec.owns(model), cell=cell)
    found = find_model(spec, refer(model, spec.paths))
    chosen = chosen_cells(spec.params, cell)
    if len(chosen) > 1:  # a single one is checked while lighteval starts
        check_contexts(found, chosen)
    scores = []
    with _lighteval(spec, len(chosen)), cluster(spec.params.run.task_runner) as workers:
        for evaluated in workers.map(measure, [{"spec": spec, "model": found, "cell": one} for one in chosen]):
            publish_score(spec, found, evaluated)
            scores.append(evaluated.score)
    if model in STAGES and spec.owns(model):
        record_outputs(spec, *(f"evaluate@{model}-{score.cell}" for score in scores))
    return scores


@flow(name="compare")
def compare_models(
    a: str,
    b: str,
    preset: str | None = None,
    overrides: tuple[str, ...] = (),
    name: str | None = None,
    suite: str | None = None,
    cell: str | None = None,
    force: bool = False,
) -> list[Comparison]:
    """Compare two policies question by question in every cell of the suite, or in one."""
    spec = RunSpec.here(preset, overrides, name, suite=suite, evaluates=True)
    for model in (a, b):
        check_evaluation(spec.params, spec.inputs, own=spec.owns(model), cell=cell)
    models, chosen = [find_model(spec, refer(model, spec.paths)) for model in (a, b)], chosen_cells(spec.params, cell)
    for found in models:
        check_contexts(found, chosen)
    calls = [{"spec": spec, "model": found, "cell": one} for one in chosen for found in models]
    with _lighteval(spec, len(calls)), cluster(spec.params.run.task_runner) as workers:
        measured = list(workers.map(measure, calls))
    comparisons = []
    for first, second in zip(measured[::2], measured[1::2], strict=True):
        samples = [read_details(evaluated.details) for evaluated in (first, second)]
        comparisons.append(compare(first.score, samples[0], second.score, samples[1], force=force))
    return comparisons


def _lighteval(spec: RunSpec, evaluations: int) -> AbstractContextManager[None]:
    """One process of lighteval's for several evaluations."""
    return lighteval_shared(spec.paths.evaluation_python) if evaluations > 1 else nullcontext()


def command(
    model: Annotated[
        str,
        typer.Option(help="warmup, final or best; a folder; REVISION:PATH, as v1:checkpoints/final; a hub id."),
    ] = "final",
    suite: Annotated[str | None, typer.Option(help="One of params/suites instead of the run's own.")] = None,
    cell: Annotated[str | None, typer.Option(help="One cell alone, PROBLEM_SET-CONTEXT.")] = None,
    compare: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Compare two models, question by question.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compare scores of different protocols.")] = False,
    preset: cli.Preset = None,
    set_: cli.Overrides = None,
    name: cli.Name = None,
    quiet: cli.Quiet = False,
) -> None:
    """Score a policy through lighteval, with the prompts and the verifier of training."""
    if force and compare is None:
        raise ConfigError("--force goes with --compare")
    spec = RunSpec.here(preset, set_ or (), name, suite=suite, evaluates=True)
    params = spec.params
    chosen_cells(params, cell)  # raises for an unknown cell
    for reference in compare or (model,):
        refer(reference, spec.paths)
        check_evaluation(params, spec.inputs, own=spec.owns(reference), cell=cell)
    with cli.served():
        if compare is None:
            print_scores(evaluate(model, preset, spec.overrides, name, suite, cell))
            print(invitation(spec.paths, "/evaluation"))
        else:
            print_comparisons(compare_models(*compare, preset, spec.overrides, name, suite, cell, force))


if __name__ == "__main__":
    cli.main(command)
