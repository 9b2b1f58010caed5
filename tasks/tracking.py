"""Reports the progress of a training to the terminal, to trackers and to Prefect's pages, and records its start.

A thread of its own writes to Prefect's pages, so that a slow or missing server costs training nothing.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from spo_core.credit.pairs import read_pairs
from spo_core.observe.bars import iterations as shown_iterations
from spo_core.observe.trackers import Trackers
from spo_core.observe.tree_table import Rows, asked, tree_rows
from spo_core.observe.view_link import work_address
from spo_core.policy.device import device_name
from spo_core.runs.directory import step_seconds
from spo_core.runs.provenance import record_attempt
from spo_core.train.identity import training_device
from spo_core.train.session import Session
from tasks.links import artifact_key, seen_at
from tasks.provenance import caller
from tasks.records import RunSpec

log = logging.getLogger(__name__)
INTERVAL = 10.0  # seconds between two writes of the pages
ANSWER_LIMIT = 5.0  # seconds that the server has to answer


@contextmanager
def training_trackers(spec: RunSpec, session: Session) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Start progress bar, trackers and pages; yields a function to call with the metrics of each iteration."""
    rows, iterations = session.run.read_metrics(), spec.params.run.iterations
    address = work_address(session.run.path)

    def trees(iteration: int) -> Rows:
        folder, now = session.run.iteration(iteration), session.under_way
        pairs = now.pairs if now and iteration == session.iteration else read_pairs(folder)
        count = spec.params.run.wandb.trees
        return tree_rows(pairs[:count], asked(folder), lambda ids: str(session.tokenizer.decode(list(ids))))

    with (
        Trackers(spec.params, session.run.path, spec.paths.root, spec.run_name or "main", rows, trees) as tracker,
        Pages(spec.run_name or "main", iterations, rows, partial(seen_at, spec.paths, address)) as pages,
        shown_iterations(iterations, session.iteration) as show,
    ):
        device = device_name(training_device(spec.params))
        record_attempt(session.run.path, spec.paths.root, session.iteration + 1, caller(spec), tracker.where, device)

        def log_metrics(metrics: Mapping[str, Any]) -> None:
            tracker.log(metrics)
            pages.show(metrics)
            show(table_row(metrics), shown(metrics))

        yield log_metrics


def shown(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Text beside the progress bar: the reward and, unless 0, the share of answers that could not be compared."""
    failed = metrics.get("rollout/failed_share", 0.0)
    return {"reward": f"{metrics['rollout/reward']:.3f}"} | ({"failed": f"{failed:.1%}"} if failed else {})


class Pages:
    """Two artifacts of the present flow run: its progress in percent, and a table of all iterations of the run.

    Both are created once and then replaced, at most every INTERVAL seconds and at the end, so that a server's database
    does not grow with the iterations. An error is logged once; outside a flow run nothing is written.
    ``seen_at`` gives the end of their descriptions, asked at each write: where the run's page is then.
    """

    def __init__(
        self,
        name: str,
        iterations: int,
        rows: Sequence[Mapping[str, Any]],
        seen_at: Callable[[], str] = lambda: "",
    ) -> None:
        self._name, self._iterations, self._seen_at = name, iterations, seen_at
        self._rows = [table_row(row) for row in rows]
        self._made: dict[str, UUID] = {}
        self._failed = self._over = False
        self._changed, self._ended = threading.Event(), threading.Event()
        context = FlowRunContext.get()
        self._flow_run = context.flow_run.id if context and context.flow_run else None
        run = copy_context().run  # Prefect's settings, among them the server of this command
        self._thread = threading.Thread(target=run, args=(self._keep_writing,), name="pages", daemon=True)

    def show(self, metrics: Mapping[str, Any]) -> None:
        self._rows = [*self._rows, table_row(metrics)]
        self._changed.set()

    def __enter__(self) -> Pages:
        if self._flow_run is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write the last state too, if the server takes it within two ANSWER_LIMITs."""
        self._over = kind is None
        self._ended.set()
        self._changed.set()
        if self._flow_run is not None:
            self._thread.join(2 * ANSWER_LIMIT)

    def _keep_writing(self) -> None:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            while True:
                self._changed.wait()
                self._changed.clear()
                last = self._ended.is_set()  # read before writing: rows of an end after this are written next time
                try:
                    self._write()
                except Exception as error:  # the client raises errors of many types
                    if not self._failed:
                        log.warning("Prefect's server does not take the run's table (%s); training goes on", error)
                    self._failed = True
                if last:
                    return
                self._ended.wait(INTERVAL)

    def _write(self) -> None:
        rows = self._rows
        done = rows[-1]["iteration"] if rows else 0
        percent = 100.0 if self._over else round(100 * done / max(done, self._iterations), 1)
        where = self._seen_at()
        with get_client(sync_client=True, httpx_settings={"timeout": ANSWER_LIMIT}) as client:
            self._put(client, "progress", percent, f"Iterations of {self._name}{where}")
            self._put(client, "table", json.dumps(rows[::-1]), f"Iterations of {self._name}, the last one first{where}")

    def _put(self, client: SyncPrefectClient, kind: str, data: float | str, description: str) -> None:
        if kind not in self._made:
            key = artifact_key("iterations" if kind == "table" else kind, self._name)
            artifact = ArtifactCreate(
                key=key, type=kind, data=data, description=description, flow_run_id=self._flow_run
            )
            self._made[kind] = client.create_artifact(artifact).id
            return
        # not update_artifact: that also sends the data as an event, which the server would keep for days
        content = {"data": data, "description": description}
        client.request("PATCH", "/artifacts/{id}", json=content, path_params={"id": self._made[kind]})


def table_row(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """An iteration's row of the table on Prefect's pages."""
    accuracy = metrics.get("eval/validation_accuracy")
    return {
        "iteration": metrics["iteration"],
        "reward": round(metrics["rollout/reward"], 4),
        "validation accuracy": None if accuracy is None else round(accuracy, 4),
        "generated tokens": metrics["generated_tokens"],
        "seconds": round(step_seconds(metrics), 2),
    }
