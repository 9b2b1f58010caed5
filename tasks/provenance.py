"""Finds the flow run that starts a run, and publishes what ``python -m flows.provenance`` reads of a finished one."""

from __future__ import annotations

import logging

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.runtime import flow_run

from spo_core.runs.provenance import PUBLISHED, Caller, publish_record, record_policy
from spo_core.train.session import Session
from spo_core.train.steps import find_best
from tasks.records import RunSpec

log = logging.getLogger(__name__)


def caller(spec: RunSpec) -> Caller:
    """The present flow run as a run's record has it; without the deployment's name if the server does not answer."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return Caller(spec.preset, spec.overrides)
    run = context.flow_run
    return Caller(spec.preset, spec.overrides, str(run.id), run.name, _deployment())


def _deployment() -> str | None:
    """Name the deployment of the present flow run, or of the root flow run that led to it."""
    try:
        root = flow_run.root_flow_run_id
        if root is None:
            return None
        with get_client(sync_client=True) as client:
            found = client.read_flow_run(root)
            if found.deployment_id is None:
                return None
            deployment = client.read_deployment(found.deployment_id)
            return f"{client.read_flow(found.flow_id).name}/{deployment.name}"
    except Exception as error:  # the client raises errors of many types
        log.info("the deployment's name is not known: %s", error)
        return None


def publish_provenance(session: Session, spec: RunSpec) -> None:
    """Record the digests of what a finished run published, and write metrics/train/provenance.json."""
    run, paths, best = session.run.path, spec.paths, find_best(session)
    record_policy(run, "final", session.iteration, paths.checkpoint("final"))
    record_policy(run, "best", best.iteration, paths.checkpoint("best"))
    publish_record(run, session.iteration, paths.work, paths.training / PUBLISHED)
