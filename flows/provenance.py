"""Traces a policy to its data, params, code, flow runs and W&B run. Reads files alone: no flow, no server."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL
from prefect.utilities.urls import url_for

from flows import cli
from spo_core.evaluate.models import CHECKPOINTS, refer
from spo_core.runs.lineage import Asked, UnknownPolicy, asked_folder, asked_score, lines, trace
from tasks.records import RunSpec
from tasks.versioning import find_model, find_record


def asked(name: str, spec: RunSpec) -> Asked:
    """The policy to trace: a checkpoint, folder or REVISION:PATH, or a score file's. Raises SPOError if missing."""
    if (path := spec.paths.root / name).suffix == ".json" and path.is_file():
        return asked_score(path)
    reference = refer(name, spec.paths)
    if reference.kind == "hub":
        raise UnknownPolicy(f"{name}: unknown; a hub id, and no run here made it")
    if reference.kind == "revision":  # with that revision's own record: the present one may be of another run
        return asked_folder(name, find_model.fn(spec, reference).folder, find_record(spec, reference))
    return asked_folder(name, Path(reference.location))


def page(flow_run_id: str) -> str | None:
    """URL of a flow run's page, None where no server is set. Whether the server still has the run is not asked."""
    known = PREFECT_UI_URL.value() or PREFECT_API_URL.value()
    return url_for("flow-run", obj_id=flow_run_id) if known else None


def command(
    checkpoint: Annotated[
        str,
        typer.Argument(help=f"{', '.join(CHECKPOINTS)}; a folder; REVISION:PATH; the .json file of a score or report."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    preset: cli.Preset = None,
    set_: cli.Overrides = None,
    name: cli.Name = None,
) -> None:
    """Print what made a policy: run, params, data, first policy, code, flow runs, W&B run, and its scores."""
    spec = RunSpec.here(preset, set_ or (), name)
    try:
        chain = trace(asked(checkpoint, spec), spec.paths.root, spec.paths.work, page)
    except UnknownPolicy as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    print(json.dumps(chain, indent=2, ensure_ascii=False) if as_json else "\n".join(lines(chain)))


if __name__ == "__main__":
    cli.main(command)
