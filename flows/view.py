"""Shows runs in a browser or on the terminal. Reads files alone: no flow, no Prefect server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spo_core.errors import ConfigError
from spo_core.paths import Paths
from spo_core.system.command_line import run
from spo_core.view.app import serve
from spo_core.view.catalogue import find_runs, named_run
from spo_core.view.rendering import address, query
from spo_core.view.terminal import print_view


def command(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="A run's page, or several compared, instead of the list of all."),
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Print a run on the terminal instead.")] = False,
    iteration: Annotated[int | None, typer.Option(min=1, help="With --text: the questions of this iteration.")] = None,
    question: Annotated[str | None, typer.Option(metavar="ID", help="With --text: the tree of this question.")] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port on loopback; 8421, or the next free.")
    ] = None,
) -> None:
    """Serve pages over the runs below work/ and outputs/ on loopback, until Ctrl-C."""
    paths = Paths(Path.cwd())
    chosen = [named_run(paths, name) for name in runs or ()]
    if text:
        from spo_core.observe.scores import table_console  # here: it takes scipy seconds to load, and pages need none

        if len(chosen) != 1 and (len(find_runs(paths)) != 1 or chosen):
            raise ConfigError("--text prints one run: name it, as python -m flows.view --text RUN")
        print_view(paths, (chosen or find_runs(paths))[0], iteration, question, table_console())
        return
    if iteration is not None or question is not None:
        raise ConfigError("--iteration and --question go with --text; in the browser both are pages")
    if len(chosen) == 1:
        serve(paths, port, f"/run/{address(chosen[0].key)}")
    else:
        serve(paths, port, f"/compare{query(run=[one.key for one in chosen])}" if chosen else "/")


if __name__ == "__main__":
    run(command)
