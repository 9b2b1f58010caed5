"""The protocol of trackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from spo_core.config import Params


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """The run that is tracked: ``directory`` is its working directory, ``root`` the project's folder."""

    params: Params
    directory: Path
    root: Path
    name: str


class Tracker(Protocol):
    """A class that a path in ``run.trackers`` names, made without arguments or with its options.

    Its methods are called from one thread of the training's process (``thread.TrackerThread``). A call that raises or
    hangs ends the tracker, not the training.
    """

    def start(self, run: TrackedRun) -> int | None:
        """Begin or resume a run; returns the last iteration that the tracker already has, 0 or None where it has
        none."""
        ...

    def log(self, row: Mapping[str, Any]) -> None:
        """Log a row of metrics.jsonl, which has the key ``iteration``; rows come one an iteration, rising."""
        ...

    def table(self, name: str, iteration: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table of an iteration; its row is logged afterwards."""
        ...

    def finish(self, failed: bool) -> None:
        """End the tracked run; ``failed`` where it stops with an error."""
        ...
