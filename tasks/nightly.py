"""The start time of a nightly evaluation's flow run, and publishing its report to Prefect, W&B and automations."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.events import emit_event

from spo_core.evaluate.nightly import nightly_report as nightly
from spo_core.evaluate.nightly.nightly_report import NightlyReport
from spo_core.observe.trackers.wandb import log_evaluation
from spo_core.observe.view_link import work_address
from tasks.links import seen_at
from tasks.records import RunSpec

log = logging.getLogger(__name__)
FELL = "spo.evaluation.fell"


@dataclass(frozen=True, slots=True)
class Night:
    """The start of a nightly run, in the timezone of its schedule, or of this machine for runs without one."""

    started: datetime
    hours_late: float
    """Hours from the scheduled time to the start; 0 for a run that no schedule made, or that was retried by hand."""

    @property
    def date(self) -> str:
        return self.started.date().isoformat()


def this_night() -> Night:
    """The start of the present flow run, or the present time outside a flow."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    started = datetime.now(_timezone(run)) if run else datetime.now().astimezone()
    if run is None or not run.auto_scheduled or run.run_count > 1 or run.expected_start_time is None:
        return Night(started, 0.0)
    return Night(started, (started - run.expected_start_time).total_seconds() / 3600)


def _timezone(run: FlowRun) -> tzinfo | None:
    """Timezone of the schedule that made the run, else of its deployment's first schedule, else of this machine."""
    if run.deployment_id is None:
        return datetime.now().astimezone().tzinfo
    with get_client(sync_client=True) as client:
        schedules = client.read_deployment(run.deployment_id).schedules
    maker = run.created_by.id if run.created_by else None
    for one in sorted(schedules, key=lambda schedule: schedule.id != maker):
        if name := getattr(one.schedule, "timezone", None):
            return ZoneInfo(name)
    return datetime.now().astimezone().tzinfo


@task(name="publish night", cache_policy=NO_CACHE, persist_result=False)
def publish_night(spec: RunSpec, report: NightlyReport, run_directory: Path, path: Path) -> None:
    """Publish a report, whose file is ``path``, as a table on Prefect's pages and as W&B metrics and, where a score
    fell, as event FELL."""
    key = "nightly-" + re.sub(r"[^a-z0-9]+", "-", report.run.lower()).strip("-")
    description = f"Iteration {report.iteration} of {report.run}, suite {report.suite}; report {path}"
    if report.compared_with is not None:
        description += f"; differences to report {report.compared_with}"
    description += seen_at(spec.paths, work_address(run_directory))
    create_table_artifact(nightly.table(report), key=key, description=description)
    log_evaluation(spec.params, run_directory, spec.paths.root, nightly.metrics(report))
    if report.fell:
        payload: dict[str, Any] = nightly.fall(report, path)
        resource = {"prefect.resource.id": f"spo.run.{report.run}", "prefect.resource.name": report.run}
        emit_event(FELL, resource=resource, payload=payload)
        log.warning("fell: %s", payload["message"])
