"""What a tracker is."""

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
    """What ``run.trackers``' paths name: a class, made without arguments or with its options.

    Its methods are called from one thread of the training's process (``thread.TrackerThread``). A call that raises or
    hangs ends the tracker, not the training.
    """

    def start(self, run: TrackedRun) -> int | None:
        """Begin or resume a run; the last iteration that the tracker already has, 0 or None where it has none."""
        ...

    def log(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl, ``iteration`` among its keys; one an iteration, rising."""
        ...

    def table(self, name: str, iteration: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table that belongs to an iteration, before its row is logged."""
        ...

    def finish(self, failed: bool) -> None:
        """The run ends, or stops with an error."""
        ...
