"""Evaluation of one checkpoint at every context length."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from spo_core.evaluate.run import evaluate_published
from spo_core.observe.progress import bar
from tasks.records import RunSpec


@task(name="evaluate", cache_policy=NO_CACHE, persist_result=False)
def evaluate_policy(spec: RunSpec, checkpoint: str) -> dict:
    """Evaluate checkpoints/<checkpoint> on the test split; publishes metrics/evaluate/<checkpoint>.json."""
    with bar(f"eval {checkpoint}", None, unit="completion") as progress:

        def show(done: int, total: int) -> None:
            progress.total = total
            progress.update(done - progress.n)

        return evaluate_published(spec.params, spec.paths, checkpoint, show)
