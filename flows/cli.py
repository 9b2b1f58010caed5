"""The command line every flow shares: ``python -m flows.<name> [--preset P] [--set key=value] [--name N]``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated, Any

import typer

from spo_core.command_line import run

Preset = Annotated[str | None, typer.Option(help="An overlay of params/presets, by its name.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="namespace.key=value; may be given several times.")]
Name = Annotated[str | None, typer.Option(help="Publish below outputs/runs/NAME instead of the main outputs.")]
Replay = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Train on the trees recorded in DIR, a run's directory below work/. Publishes below outputs/runs/replay; "
        "with a preset, --set or --name that name stands before it.",
    ),
]
RolloutsOnly = Annotated[
    bool,
    typer.Option(
        "--rollouts-only", help="Sample, grade and keep the trees of run.iterations iterations; train nothing."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print all params and an estimate; start and write nothing.")]


def main(command: Callable[..., Any]) -> None:
    """Run a typer command; a refusal is one or two lines on standard error and exit status 2."""
    handler = logging.StreamHandler()  # on the logger itself: Prefect stops extra loggers from propagating
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    for name in ("spo_core", "tasks"):
        logging.getLogger(name).addHandler(handler)
    run(command, interrupted="interrupted; the same command continues from the last checkpoint")
