"""The command line every flow shares: ``python -m flows.<name> [--preset P] [--set key=value] [--name N]``."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.local_server import local_server
from flows.server_check import check_server, server_fault
from spo_core.observe.bars import quiet
from spo_core.system.command_line import run
from spo_core.system.startup import ends

DRAIN_SECONDS = 10
_ADVISED = re.compile(r"(python -m flows\.(?:prepare|warmup|train)\b(?! -))(?: \(or dvc repro[ \w]*\))?")
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
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", callback=quiet, help="Show no progress, only warnings, errors and results.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print all params and an estimate; start and write nothing.")]


@contextmanager
def served() -> Iterator[None]:
    """Give the flows of one command a Prefect server: the one that PREFECT_API_URL names, else one started here.

    Prefect's own ephemeral server will not do: an interrupt from the keyboard ends it before the flow, which then waits
    for it for minutes, and it outlives a flow that is killed. Raises SPOError where the one that is named will not do.
    """
    if PREFECT_API_URL.value() is not None:
        check_server()
        with delivered():
            yield
        return
    with (
        local_server(Path.cwd()) as environment,
        temporary_settings({PREFECT_API_URL: environment["PREFECT_API_URL"]}),
        delivered(),
    ):
        yield


_undelivered: list[object] = []


@contextmanager
def delivered() -> Iterator[None]:
    """Send what Prefect's workers still hold when the block ends, for DRAIN_SECONDS each: the server may be gone."""
    try:
        yield
    finally:
        for worker in (EventsWorker, APILogWorker):
            _undelivered.extend(cast(tuple, worker.drain_all(timeout=DRAIN_SECONDS))[1])


class Warnings(logging.StreamHandler):
    """Writes to what is standard error at the moment: while bars are drawn, that is what writes above them."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, _: Any) -> None: ...


def with_options(message: str) -> str:
    """Complete the commands that a message advises by the preset, overrides and name of this one: without them they are
    about another run."""
    given, kept = sys.argv[1:], []
    for at, option in enumerate(given):
        if option.partition("=")[0] in ("--preset", "--set", "--name"):
            kept += given[at : at + 1 + ("=" not in option)]
    return complete(message, kept)


def complete(message: str, options: list[str]) -> str:
    """Put options behind every command that a message advises."""
    return _ADVISED.sub(lambda found: f"{found[1]} {shlex.join(options)}", message) if options else message


def main(command: Callable[..., Any], advised: Callable[[str], str] = with_options) -> None:
    """Run a typer command. An SPOError is printed to standard error in one or two lines, with exit status 2;
    ``advised`` completes the commands in it."""
    handler = Warnings()  # on the logger itself: Prefect stops extra loggers from propagating
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    for name in ("spo_core", "tasks"):
        logging.getLogger(name).addHandler(handler)
    try:
        run(
            command,
            interrupted="interrupted; the same command goes on from what is finished",
            refusal=server_fault,
            advised=advised,
        )
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
        if _undelivered:  # Python would wait for each, minutes in all
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        ends(status)
        raise
