"""Dataset preparation."""

from __future__ import annotations

import time

from prefect import task
from prefect.cache_policies import NO_CACHE

from spo_core.problems.prepare import prepare_splits
from spo_core.system.files import write_json
from tasks.records import RunSpec


@task(name="prepare splits", cache_policy=NO_CACHE, persist_result=False)
def prepare_dataset(spec: RunSpec) -> dict:
    """Publish data/<problem set>; returns the number of questions in each split, and of those left out."""
    started = time.perf_counter()
    counts = prepare_splits(spec.params, spec.paths)
    write_json(spec.paths.metrics("prepare"), counts | {"seconds": round(time.perf_counter() - started, 2)})
    return counts
