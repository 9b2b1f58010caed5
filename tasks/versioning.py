"""Versioning of what a flow published."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from spo_core import versioning
from spo_core.evaluate.models import Model, Reference, download, folder_model
from spo_core.runs import open_run
from tasks.records import RunSpec

log = logging.getLogger(__name__)


@task(name="record outputs", cache_policy=NO_CACHE, persist_result=False)
def record_outputs(spec: RunSpec, *stages: str) -> None:
    """Leave it to ``dvc repro`` where that calls; otherwise commit the main run's stages, or add a run's policy.

    A run with overrides versions its trained policy alone; everything else follows from it and its params.
    """
    root = spec.paths.root
    if os.environ.get("DVC_STAGE") or not versioning.is_repository(root):
        return
    if spec.run_name is None:
        versioning.commit_stages(root, *stages)
    elif "train" in stages:
        versioning.add_output(root, spec.paths.checkpoint("final"))


@task(name="find model", cache_policy=NO_CACHE, persist_result=False)
def find_model(spec: RunSpec, reference: Reference) -> Model:
    """The policy that was asked for, on this machine. Raises SPOError where git, DVC or the hub does not give it."""
    if reference.kind == "hub":
        return folder_model(reference.name, download(reference))
    if reference.revision is None:
        return folder_model(reference.name, Path(reference.place))
    with open_run(
        spec.paths.work, "model", {"at": reference.revision, "path": reference.place}, spec.paths.root
    ) as run:
        folder = run.path / "policy"
        if not folder.exists():
            fetched = run.path / "fetched"
            versioning.fetch(spec.paths.root, reference.revision, reference.place, fetched)
            fetched.rename(folder)
        return folder_model(reference.name, folder)
