"""Calls a tracker in a thread of its own, so that training waits for none that hangs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextvars import copy_context
from operator import methodcaller
from queue import Full, Queue
from threading import Event, Lock, Thread
from time import monotonic
from typing import Any

from spo_core.errors import first_line
from spo_core.observe.trackers.protocol import TrackedRun, Tracker
from spo_core.observe.tree_table import COLUMNS, Rows

log = logging.getLogger(__name__)
PATIENCE = 90.0  # seconds for one call, and at the end for all that are left; above the limits of W&B's tracker
WAITING = 1000  # calls that may wait for a slow tracker


class TrackerThread:
    """Calls one tracker in order. Where it raises or hangs, one warning is logged and it is called no more."""

    def __init__(self, key: str, name: str, make: Callable[[], Tracker], run: TrackedRun) -> None:
        self.known = 0
        """The last iteration that the tracker already has; holds once it has started."""
        self.where: dict[str, str] | None = None
        """W&B's project, id, mode and address of the run; holds once the tracker has started."""
        self._called = f"{key}: {name}"
        self._calls: Queue[Callable[[Tracker], Any] | None] = Queue(WAITING)
        self._call_began = math.inf  # no call is under way
        self._started, self._given_up = Event(), Lock()
        context = copy_context()  # holds the flow run for Prefect's log handlers
        self._thread = Thread(target=context.run, args=(self._work, make, run), name=self._called, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the tracker is still called; gives up one whose present call has taken longer than PATIENCE."""
        if monotonic() - self._call_began > PATIENCE:
            self._give_up(f"a call took longer than {PATIENCE:g} s")
        return not self._given_up.locked()

    def wait_started(self, deadline: float) -> None:
        if not self._started.wait(max(0.0, deadline - monotonic())):
            self._give_up(f"it did not start within {PATIENCE:g} s")

    def tell(self, row: Mapping[str, Any], table: Rows | None) -> None:
        """Queue a row to be logged, after the table of trees that belongs to it."""
        if table is not None:
            self._put(methodcaller("table", "trees", row["iteration"], COLUMNS, table))
        self._put(methodcaller("log", dict(row)))

    def finish(self, failed: bool) -> None:
        """Queue the tracker's ``finish`` behind all earlier calls; see ``wait_finished``."""
        self._put(methodcaller("finish", failed=failed))
        self._put(None)

    def wait_finished(self, deadline: float) -> None:
        if self.alive:
            self._thread.join(max(0.0, deadline - monotonic()))
            if self._thread.is_alive():
                self._give_up(f"it did not finish within {PATIENCE:g} s")

    def _put(self, call: Callable[[Tracker], Any] | None) -> None:
        try:
            if self.alive:
                self._calls.put(call, timeout=PATIENCE)
        except Full:
            self._give_up(f"{WAITING} calls wait for it")

    def _work(self, make: Callable[[], Tracker], run: TrackedRun) -> None:
        try:
            tracker = make()
            self.known = int(tracker.start(run) or 0)
            self.where = getattr(tracker, "where", None)
            self._started.set()
            while not self._given_up.locked() and (call := self._calls.get()) is not None:
                self._call_began = monotonic()
                call(tracker)
                self._call_began = math.inf
        except BaseException as error:  # SystemExit too: it would end the thread without a word
            self._give_up(first_line(error))
            self._started.set()

    def _give_up(self, why: str) -> None:
        if self._given_up.acquire(blocking=False):  # once; the main thread and this tracker's may come together
            log.warning("%s is told no more (%s); the numbers are in metrics.jsonl", self._called, why)
