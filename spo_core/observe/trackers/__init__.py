"""Trackers: who is told a training's numbers. Not here: what a run depends on, for a tracker's failure stops nothing.

``run.trackers`` names those of a run. To add one of ours: a module here with a class that follows ``Tracker``, and its
line in ``KNOWN``.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spo_core.config import CustomParams, Params
from spo_core.errors import ConfigError
from spo_core.observe.trackers.protocol import TrackedRun, Tracker
from spo_core.observe.tree_table import COLUMNS, TreeTable
from spo_core.system.plugins import load

log = logging.getLogger(__name__)
KNOWN = {  # name -> its class, and the package it needs
    "wandb": ("spo_core.observe.trackers.wandb:WandbTracker", None),
    "tensorboard": ("spo_core.observe.trackers.tensorboard:TensorBoardTracker", "tensorboard"),
}


def check_trackers(params: Params) -> None:
    """Raise ConfigError where a tracker of ``run.trackers`` does not fit or lacks its package."""
    for key, chosen in _chosen(params):
        if isinstance(chosen, CustomParams):
            load(key, chosen.path, chosen.options, Tracker)
        elif (package := KNOWN[chosen][1]) and importlib.util.find_spec(package) is None:
            raise ConfigError(f"{key}: {chosen} needs the extra: pip install -e '.[{chosen}]', or leave it out")


class Trackers:
    """All trackers of a run; a context. What one raises is logged once, it is told no more, and training goes on.

    ``history`` has the rows of the iterations before: each tracker is told those that it has not, so that an outage
    leaves no gap. ``trees`` gives an iteration's table of trees.
    """

    def __init__(
        self,
        params: Params,
        run_directory: Path,
        root: Path,
        name: str,
        history: Sequence[Mapping[str, Any]] = (),
        trees: Callable[[int], TreeTable] | None = None,
    ) -> None:
        self._every, self._trees = params.run.wandb.trees_every, trees
        self._open: dict[str, Tracker] = {}
        run = TrackedRun(params, run_directory, root, name)
        for key, chosen in _chosen(params):
            shown = chosen.path if isinstance(chosen, CustomParams) else chosen
            with self._guarded(key, shown):
                self._open[key] = tracker = _make(key, chosen)
                known = tracker.start(run) or 0
                for row in history:
                    if row["iteration"] > known:
                        _tell(tracker, row, self._table(row["iteration"]))

    @property
    def where(self) -> dict[str, str] | None:
        """Where W&B has the run, if it is told."""
        found = [getattr(tracker, "where", None) for tracker in self._open.values()]
        return next((one for one in found if one), None)

    def log(self, row: Mapping[str, Any]) -> None:
        """Tell a row of metrics.jsonl, and every ``run.wandb.trees_every`` iterations a table of trees."""
        table = self._table(row["iteration"]) if self._open else None
        for key, tracker in list(self._open.items()):
            with self._guarded(key, type(tracker).__name__):
                _tell(tracker, row, table)

    def _table(self, iteration: int) -> TreeTable | None:
        if self._trees is None or self._every is None or iteration % self._every:
            return None
        try:
            return self._trees(iteration)
        except Exception as error:  # its folder was deleted since, or is damaged: numbers go on without it
            log.info("no table of the trees of iteration %d: %s", iteration, error)
            return None

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for key, tracker in list(self._open.items()):
            with self._guarded(key, type(tracker).__name__):
                tracker.finish(failed=kind is not None)
        self._open.clear()

    @contextmanager
    def _guarded(self, key: str, name: str) -> Iterator[None]:
        """Let nothing out that a tracker raises, and drop the tracker."""
        try:
            yield
        except (Exception, SystemExit) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            log.warning("%s: %s is told no more (%s); the numbers are in metrics.jsonl", key, name, said)
            self._open.pop(key, None)


def _tell(tracker: Tracker, row: Mapping[str, Any], table: TreeTable | None) -> None:
    if table is not None:
        tracker.table("trees", row["iteration"], COLUMNS, table.rows)
    tracker.log(row)


def _chosen(params: Params) -> list[tuple[str, str | CustomParams]]:
    return [(f"run.trackers.{n}", chosen) for n, chosen in enumerate(params.run.trackers) if chosen != "none"]


def _make(key: str, chosen: str | CustomParams) -> Tracker:
    if isinstance(chosen, CustomParams):
        return load(key, chosen.path, chosen.options, Tracker)()
    module, _, name = KNOWN[chosen][0].partition(":")
    return getattr(importlib.import_module(module), name)()
