"""The summary and the page of a run."""

from __future__ import annotations

import logging
from pathlib import Path

from prefect import task
from prefect.artifacts import create_link_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from spo_core.observe.summary import publish_report
from spo_core.observe.view_link import run_address, running_view
from tasks.records import RunSpec
from tasks.tracking import artifact_key

log = logging.getLogger(__name__)


@task(name="report", cache_policy=NO_CACHE, persist_result=False)
def build_report(spec: RunSpec) -> dict:
    """Publish metrics/summary.json and report/index.html from what the other stages published."""
    name = spec.run_name or "main"
    summary = publish_report(spec.params, spec.paths, title=name)
    link_report(spec.paths.report / "index.html", name)
    if (origin := running_view(spec.paths)) is not None:
        link_view(origin + run_address(spec.run_name), name)
    return summary


def link_report(page: Path, name: str) -> None:
    """Add a link to the report to the present flow run's artifacts; an error of the server is only logged."""
    place = page.resolve()
    # browsers open no file:// link from another machine's page, so the path is shown too, to be copied
    _link(place.as_uri(), str(place), artifact_key("report", name), f"Report of {name}: `{place}`")


def link_view(address: str, name: str) -> None:
    """Add a link to a run's page in the view, which is served now; as ``link_report``."""
    _link(address, address, artifact_key("view", name), f"Every iteration, tree and completion of {name}")


def _link(link: str, text: str, key: str, description: str) -> None:
    if FlowRunContext.get() is None:
        return
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            create_link_artifact(link, text, key=key, description=description)
    except Exception as error:  # the client raises errors of many types
        log.warning("Prefect's server does not take the link to %s: %s", text, error)
