"""Progress on standard error: bars and a table of the last iterations, redrawn in place; plain lines in a log file.

``quiet`` turns all of it off for the process. Warnings, errors and results are not progress and come all the same.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

ROWS = 8  # iterations in the table
EVERY = 20.0  # seconds between two lines of one bar in a log file

_quiet = False
_screen: Screen | None = None  # of the outermost bar or table, which the others share


def quiet(wanted: bool = True) -> bool:
    """Show no progress in this process from now on; returns ``wanted``, as a callback of a command's option."""
    global _quiet
    _quiet = wanted
    return wanted


class Screen:
    """The bars and the table of a terminal, redrawn in place."""

    def __init__(self, console: Console) -> None:
        text = TextColumn("{task.description:>10}")
        columns = (text, BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[unit]} {task.fields[beside]}"))
        self.progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
        self.rows: deque[Mapping[str, Any]] = deque(maxlen=ROWS)
        self.live = Live(get_renderable=self.draw, console=console, refresh_per_second=4)

    def draw(self) -> Group:
        return Group(*([iterations_table(self.rows)] if self.rows else []), self.progress)


class Bar:
    """Work under way. ``n`` of ``total`` units are done; ``total`` None is unknown."""

    def __init__(self, description: str, total: float | None, unit: str, screen: Screen | None, lines: bool) -> None:
        self.description, self.unit, self.n, self.beside = description, unit, 0.0, ""
        self._total, self._screen, self._lines, self._said = total, screen, lines, time.monotonic()
        if screen is not None:
            self._task = screen.progress.add_task(description, total=total, unit=unit, beside="")

    @property
    def total(self) -> float | None:
        return self._total

    @total.setter
    def total(self, total: float | None) -> None:
        self._total = total
        self._show()

    def update(self, done: float) -> None:
        """Count further units."""
        self.n += done
        self._show()

    def set_postfix(self, values: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Set what stands beside the count."""
        self.beside = ", ".join(f"{name}={value}" for name, value in {**(values or {}), **more}.items())
        self._show()

    def _show(self) -> None:
        if self._screen is not None:
            self._screen.progress.update(self._task, completed=self.n, total=self._total, beside=self.beside)
        elif self._lines and time.monotonic() - self._said > EVERY:
            self._said = time.monotonic()
            of = "" if self._total is None else f" of {self._total:,.0f}"
            _say(f"{self.description}: {self.n:,.0f}{of} {self.unit} {self.beside}".rstrip())

    def end(self, *, leave: bool) -> None:
        if self._screen is not None:
            if leave:
                self._screen.progress.stop_task(self._task)
            else:
                self._screen.progress.remove_task(self._task)


@contextmanager
def bar(description: str, total: float | None, *, unit: str, inner: bool = False) -> Iterator[Bar]:
    """Show a progress bar; ``inner`` ones stand below another and vanish when done. In a log file a bar is a line now
    and then, none for work that ends quickly and none for an inner one."""
    with _shared_screen() as screen:
        shown = Bar(description, total, unit, screen, lines=not inner and not _quiet)
        try:
            yield shown
        finally:
            shown.end(leave=not inner)


@contextmanager
def iterations(total: int, done: int) -> Iterator[Callable[[Mapping[str, Any], Mapping[str, str]], None]]:
    """Show a training's iterations: a bar, and above it the table of the last ones; in a log file a line for each.

    Yields the function to call with each iteration's row (``ROW`` names what a row may have) and what stands beside the
    bar.
    """
    with _shared_screen() as screen:
        shown = Bar("train", total, "it", screen, lines=False)
        shown.update(done)

        def show(row: Mapping[str, Any], beside: Mapping[str, str]) -> None:
            if screen is not None:
                screen.rows.append(row)
            elif not _quiet:
                found = ", ".join(f"{name} {cell}" for name, cell in zip(ROW, cells(row), strict=True) if cell)
                _say(f"{found} (of {total})")
            shown.set_postfix(beside)
            shown.update(1)

        try:
            yield show
        finally:
            shown.end(leave=True)


ROW = ("iteration", "reward", "validation accuracy", "generated tokens", "seconds")


def cells(row: Mapping[str, Any]) -> list[str]:
    """Texts of an iteration's row, in the order of ROW; empty where there is none."""
    forms = {"reward": "{:.3f}", "validation accuracy": "{:.3f}", "generated tokens": "{:,}", "seconds": "{:.1f}"}
    return ["" if row.get(name) is None else forms.get(name, "{}").format(row[name]) for name in ROW]


def iterations_table(rows: Sequence[Mapping[str, Any]] | deque[Mapping[str, Any]]) -> Table:
    """Table of iterations, a row each."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ROW:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*cells(row))
    return table


@contextmanager
def _shared_screen() -> Iterator[Screen | None]:
    """The terminal's screen, opened by the outermost of those that share it; None where there is no terminal."""
    global _screen
    if _quiet or not sys.stderr.isatty():
        yield None
        return
    with ExitStack() as stack:
        if _screen is None:
            _screen = Screen(Console(stderr=True))
            stack.callback(_forget_screen)
            stack.enter_context(_screen.live)
        yield _screen


def _forget_screen() -> None:
    global _screen
    _screen = None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
