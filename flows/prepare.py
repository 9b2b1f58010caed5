"""Prepares the splits of a problem set."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from prefect import flow

from flows import cli
from spo_core.problems.prepare import check_source, describe
from tasks.datasets import prepare_dataset
from tasks.records import RunSpec
from tasks.versioning import record_outputs

ProblemSetName = Annotated[
    str | None,
    typer.Option(help="Sugar for --set data.problem_set=...; publishes below outputs/runs/<problem set>."),
]
Source = Annotated[str | None, typer.Option(metavar="DIR", help="Sugar for --set data.source=DIR.")]


@flow(name="prepare")
def prepare(preset: str | None = None, overrides: tuple[str, ...] = (), name: str | None = None) -> dict:
    """Write the splits of the problem set; returns how many questions each has, and how many were left out."""
    spec = RunSpec.here(preset, overrides, name)
    counts = prepare_dataset(spec)
    record_outputs(spec, "prepare")
    return counts


def command(
    preset: cli.Preset = None,
    set_: cli.Overrides = None,
    name: cli.Name = None,
    problem_set: ProblemSetName = None,
    source: Source = None,
) -> None:
    """Prepare the train, validation and test questions of the problem set."""
    overrides = tuple(set_ or ())
    if problem_set is not None:
        overrides += (f"data.problem_set={problem_set}",)
        name = name or (problem_set if preset is None else None)
    if source is not None:
        overrides += (f"data.source={json.dumps(source)}",)
    spec = RunSpec.here(preset, overrides, name)
    check_source(spec.params)
    with cli.served():
        counts = prepare(preset, overrides, name)
    print(f"prepared {spec.paths.data(spec.params.data.problem_set)}", *describe(counts), sep="\n")


if __name__ == "__main__":
    cli.main(command)
