"""Rollouts of one iteration."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from spo_core.iteration import rollout_step
from spo_core.observe.progress import bar
from spo_core.session import session
from tasks.records import Iteration


@task(name="rollout", cache_policy=NO_CACHE, persist_result=False)
def collect_rollouts(iteration: Iteration) -> dict:
    """Sample and grade trees with the present policy; writes trees.parquet."""
    with bar("rollout", None, unit="tok", inner=True) as progress:

        def show(responses: int, tokens: int) -> None:
            progress.set_postfix(responses=responses, refresh=False)
            progress.update(tokens - progress.n)

        return rollout_step(session(iteration.run_directory), iteration.number, show)
