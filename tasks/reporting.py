"""The summary and the page of a run."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from spo_core.observe.summary import publish_report
from tasks.records import RunSpec


@task(name="report", cache_policy=NO_CACHE, persist_result=False)
def build_report(spec: RunSpec) -> dict:
    """Publish metrics/summary.json and report/index.html from what the other stages published."""
    return publish_report(spec.params, spec.paths, title=spec.run_name or "main")
