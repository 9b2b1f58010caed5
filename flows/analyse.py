"""Measures which credit gives most learning for a token and for a second, at one policy and before a run is spent."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from prefect import flow
from pydantic import Field

from flows import cli
from spo_core.analysis.candidates import DEFAULT, read_candidates
from spo_core.errors import SPOError
from tasks.analysis import (
    AnalysisSpec,
    check_analysis,
    measure_gradients,
    measure_values,
    open_analysis,
    publish_analysis,
    publish_checkpoints,
    read_spec,
    refer_model,
    refer_models,
    report_names,
)
from tasks.limits import concurrency_slot
from tasks.versioning import find_model

TOKENS, STATES, ROLLOUTS = 200_000, 24, 256


@flow(name="analyse")
def analyse(
    presets: tuple[str, ...] = (DEFAULT,),
    grid: str | None = None,
    models: Annotated[tuple[str, ...], Field(min_length=1)] = ("warmup",),
    start: str | None = None,
    tokens: Annotated[int, Field(ge=1)] = TOKENS,
    states: Annotated[int, Field(ge=0)] = STATES,
    rollouts: Annotated[int, Field(ge=2)] = ROLLOUTS,
    overrides: tuple[str, ...] = (),
    name: str | None = None,
) -> dict:
    """Measure candidates at policies, compare them, and publish reports/analysis/<name>/; returns what its JSON holds:
    the comparison, or with several policies one of each."""
    run, candidates = read_spec(Path.cwd(), tuple(presets), grid, tuple(overrides), name)
    found = [find_model(run, reference) for reference in refer_models(run, models)]
    began = find_model(run, refer_model(run, start)) if start else None
    specs = [
        AnalysisSpec(run, candidates, model, began, tokens, states, rollouts, report)
        for model, report in zip(found, report_names(name, found), strict=True)
    ]
    for spec in specs:
        check_analysis(spec)
    with concurrency_slot(candidates[0].params.run.gpu_limit):
        results = [_measure(spec) for spec in specs]
    return results[0] if len(results) == 1 else publish_checkpoints(specs, results)


def _measure(spec: AnalysisSpec) -> dict:
    """Measure all candidates at one policy."""
    with open_analysis(spec) as directory:
        for candidate in spec.all:
            measure_gradients(directory, candidate, spec.tokens)
            if spec.states:
                measure_values(directory, candidate, spec.states, spec.rollouts)
        return publish_analysis(spec, directory)


def command(
    presets: Annotated[
        list[str] | None, typer.Argument(help="Candidates: presets, and default for params/ without one.")
    ] = None,
    grid: Annotated[
        str | None, typer.Option(metavar="FILE", help="More candidates: YAML from names to preset and set.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="warmup, final or best; a folder; REVISION:PATH; a hub id. Several: one after the other."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Policy that training began with, and how far the model has gone from it."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate for each candidate.")] = TOKENS,
    states: Annotated[int, typer.Option(min=0, help="States whose true value is sampled; 0: none.")] = STATES,
    rollouts: Annotated[int, typer.Option(min=2, help="Responses sampled from each of these states.")] = ROLLOUTS,
    set_: cli.Overrides = None,
    name: Annotated[str | None, typer.Option(help="Of the folder below reports/analysis.")] = None,
    quiet: cli.Quiet = False,
) -> None:
    """Measure gradient efficiency, value error and credit of candidates at a policy, or several; none is trained."""
    chosen = tuple(presets or (() if grid else (DEFAULT,)))
    run, _ = read_spec(Path.cwd(), chosen, grid, tuple(set_ or ()), name)
    models = tuple(model or ("warmup",))
    refer_models(run, models)
    if start:
        refer_model(run, start)
    with cli.served():
        analyse(chosen, grid, models, start, tokens, states, rollouts, tuple(set_ or ()), name)


def with_preset(message: str) -> str:
    """Complete the commands that a message advises by the first candidate's preset: its run is the one analysed."""
    app = typer.Typer()
    app.command()(command)
    with suppress(SPOError):  # refused candidates: the message is about them
        given = typer.main.get_command(app).make_context("analyse", sys.argv[1:]).params
        grid = Path.cwd() / given["grid"] if given["grid"] else None
        presets = given["presets"] or (() if grid else (DEFAULT,))
        preset = read_candidates(Path.cwd(), presets, grid, given["set_"] or ())[0].preset
        return cli.complete(message, ["--preset", preset] if preset else [])
    return message


if __name__ == "__main__":
    cli.main(command, advised=with_preset)
