"""The summary and the page of a run."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from spo_core.observe.summary import publish_report
from spo_core.observe.view_link import run_address
from tasks.links import link_report, link_view, seen_at
from tasks.records import RunSpec


@task(name="report", cache_policy=NO_CACHE, persist_result=False)
def build_report(spec: RunSpec) -> dict:
    """Publish metrics/summary.json and report/index.html from what the other stages published."""
    name, address = spec.run_name or "main", run_address(spec.run_name)
    summary = publish_report(spec.params, spec.paths, title=name)
    link_report(spec.paths.report / "index.html", name, seen_at(spec.paths, address))
    link_view(spec.paths, address, name, f"Every iteration, tree and completion of {name}")
    return summary
