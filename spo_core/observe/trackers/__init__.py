"""Trackers, which log a training's metrics. Not here: what a run depends on, for a tracker's failure stops nothing.

``run.trackers`` names those of a run. To add one of ours: a module here with a class that follows ``Tracker``, and its
line in ``spo_core.config.custom.OURS``.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from spo_core.config import OURS, CustomParams, Params
from spo_core.errors import ConfigError
from spo_core.observe.trackers import thread
from spo_core.observe.trackers.protocol import TrackedRun, Tracker
from spo_core.observe.trackers.thread import TrackerThread
from spo_core.observe.tree_table import Rows
from spo_core.system.plugins import load

log = logging.getLogger(__name__)


def check_trackers(params: Params) -> None:
    """Raise ConfigError where a tracker of ``run.trackers`` does not fit or lacks its package."""
    for key, shown, chosen in _chosen(params):
        package = getattr(load(key, chosen.path, chosen.options, Tracker), "extra", None)
        if package is not None and importlib.util.find_spec(package) is None:
            raise ConfigError(f"{key}: {shown} needs the extra: pip install -e '.[{package}]', or leave it out")


class Trackers:
    """All trackers of a run; a context. Each has a thread, so that one that raises or hangs stops nothing.

    ``history`` has the rows of the iterations before: each tracker is told those that it lacks, so that an outage
    leaves no gap. ``trees`` gives the rows of an iteration's table of trees. Starting and finishing wait PATIENCE
    seconds at most.
    """

    def __init__(
        self,
        params: Params,
        run_directory: Path,
        root: Path,
        name: str,
        history: Sequence[Mapping[str, Any]] = (),
        trees: Callable[[int], Rows] | None = None,
    ) -> None:
        self._every, self._trees = params.run.wandb.trees_every, trees
        run = TrackedRun(params, run_directory, root, name)
        self._threads = [
            TrackerThread(key, shown, partial(_make, key, chosen), run) for key, shown, chosen in _chosen(params)
        ]
        deadline = monotonic() + thread.PATIENCE
        for one in self._threads:
            one.wait_started(deadline)
        for row in history:
            self._tell(row, [one for one in self._threads if row["iteration"] > one.known])

    @property
    def where(self) -> dict[str, str] | None:
        """W&B's project, id, mode and address of the run; None where W&B does not log it."""
        return next((one.where for one in self._threads if one.where), None)

    def log(self, row: Mapping[str, Any]) -> None:
        """Log a row of metrics.jsonl, and every ``run.wandb.trees_every`` iterations a table of trees."""
        self._tell(row, self._threads)

    def _tell(self, row: Mapping[str, Any], threads: Sequence[TrackerThread]) -> None:
        told = [one for one in threads if one.alive]
        table = self._table(row["iteration"]) if told else None
        for one in told:
            one.tell(row, table)

    def _table(self, iteration: int) -> Rows | None:
        if self._trees is None or self._every is None or iteration % self._every:
            return None
        try:
            return self._trees(iteration)
        except Exception as error:  # a deleted or damaged folder must not stop the log
            log.info("no table of the trees of iteration %d: %s", iteration, error)
            return None

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for one in self._threads:
            one.finish(failed=kind is not None)
        deadline = monotonic() + thread.PATIENCE
        for one in self._threads:
            one.wait_finished(deadline)


def _chosen(params: Params) -> list[tuple[str, str, CustomParams]]:
    """List key, shown name and path of each tracker."""
    return [
        (f"run.trackers.{n}", chosen, CustomParams(type="custom", path=OURS[f"run.trackers.{chosen}"]))
        if isinstance(chosen, str)
        else (f"run.trackers.{n}", chosen.path, chosen)
        for n, chosen in enumerate(params.run.trackers)
        if chosen != "none"
    ]


def _make(key: str, chosen: CustomParams) -> Tracker:
    return load(key, chosen.path, chosen.options, Tracker)()
