"""Versioning of what a flow published."""

from __future__ import annotations

import logging
import os

from prefect import task
from prefect.cache_policies import NO_CACHE

from spo_core import versioning
from tasks.records import RunSpec

log = logging.getLogger(__name__)


@task(name="record outputs", cache_policy=NO_CACHE, persist_result=False)
def record_outputs(spec: RunSpec, stage: str) -> None:
    """Leave it to ``dvc repro`` where that is the caller; otherwise commit the main run's stage, or add a run's policy.

    A run with overrides versions its trained policy alone; everything else follows from it and its params.
    """
    root = spec.paths.root
    if os.environ.get("DVC_STAGE") or not versioning.is_repository(root):
        return
    if spec.run_name is None:
        versioning.commit_stage(root, stage)
    elif stage == "train":
        versioning.add_output(root, spec.paths.checkpoint("final"))
