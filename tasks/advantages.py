"""Credit assignment of one iteration."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from spo_core.train.opening import session
from spo_core.train.steps import credit_step
from tasks.records import Iteration


@task(name="advantage", cache_policy=NO_CACHE, persist_result=False)
def assign_advantages(iteration: Iteration) -> dict:
    """Assign values, advantages and masks to the iteration's trees, and write credits.parquet; returns metrics."""
    return credit_step(session(iteration.run_directory), iteration.number)
