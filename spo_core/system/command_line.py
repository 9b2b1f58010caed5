"""Helpers of command lines: ending with a message and an exit status, and reading files of lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import typer

from spo_core.errors import DataError, SPOError
from spo_core.system.files import disk_error, system_error
from spo_core.system.startup import begin


def run(
    command: Callable[..., Any],
    interrupted: str = "interrupted",
    refusal: Callable[[Exception], SPOError | None] = lambda _: None,
    advised: Callable[[str], str] = str,
) -> None:
    """Run a typer command; a refusal, or what the system refuses (a full disk, a file that may not be read), is one or
    two lines on standard error and exit status 2. ``refusal`` finds those of further libraries, ``advised``
    completes a message."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

    @wraps(command)
    def interruptible(*arguments: Any, **options: Any) -> Any:
        try:
            return command(*arguments, **options)
        except BaseException as error:  # typer would end without a message
            if isinstance(error, (SPOError, OSError)) or not _of_interrupt(error):  # those say more than an interrupt
                raise
            print(interrupted, file=sys.stderr)
            raise typer.Exit(130) from None

    app.command()(interruptible)
    begin()
    try:
        app()
    except Exception as error:
        found = error if isinstance(error, SPOError) else disk_error(error) or system_error(error) or refusal(error)
        if found is None:
            raise
        print(f"error: {advised(str(found))}", file=sys.stderr)
        sys.exit(2)


def _of_interrupt(error: BaseException | None) -> bool:
    """Whether an interrupt is this error or what was handled as it arose: Prefect fails where one comes as a task
    starts."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def read_lines(path: str) -> Iterator[tuple[int, str, str]]:
    """Yield (number from 1, "FILE:number", text) of every line that is not blank; ``-`` is standard input.

    Raises DataError for a file that cannot be read or is not UTF-8.
    """
    try:
        with sys.stdin.buffer if path == "-" else open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{'standard input' if path == '-' else path}:{number}"
                try:
                    text = line.decode().lstrip("\ufeff")
                except UnicodeDecodeError as error:
                    raise DataError(f"{where}: not UTF-8: {error.reason} at byte {error.start + 1}") from None
                if text.strip():
                    yield number, where, text
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
