"""Versioning of what a flow published."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from spo_core.errors import SPOError
from spo_core.evaluate.models import Model, Reference, download, folder_model
from spo_core.runs.directory import RunDirectory, open_run
from spo_core.runs.lineage import MILESTONES
from spo_core.runs.provenance import PUBLISHED, publish_record, record_policy
from spo_core.system import dvc
from spo_core.system.files import publish
from tasks.limits import concurrency_slot
from tasks.records import RunSpec

log = logging.getLogger(__name__)
DVC_LIMIT = "dvc"  # Prefect's limit that whoever writes to the DVC repository holds, where the server has it
PATIENCE = 60.0  # seconds that training waits for it


@task(name="record outputs", cache_policy=NO_CACHE, persist_result=False)
def record_outputs(spec: RunSpec, *stages: str) -> None:
    """Leave it to ``dvc repro`` where that calls; otherwise commit the main run's stages, or add a run's policy.

    A run with overrides versions its trained policy alone; everything else follows from it and its params.
    """
    root = spec.paths.root
    if os.environ.get("DVC_STAGE") or not dvc.is_repository(root):
        return
    with concurrency_slot(DVC_LIMIT):
        if spec.run_name is None:
            dvc.commit_stages(root, *stages)
        elif "train" in stages:
            dvc.add_output(root, spec.paths.checkpoint("final"))


def version_milestones(spec: RunSpec, run: RunDirectory, every: int | None) -> None:
    """Version the policies of milestones that DVC does not have yet, those that a killed flow left too.

    ``every`` is ``run.milestone_every``.
    """
    if dvc.is_repository(spec.paths.root):
        waiting = [number for number in run.milestones(every) if not _is_versioned(spec, run, number)]
        if waiting:
            add_milestones(spec, str(run.path), waiting)


@task(name="version milestones", cache_policy=NO_CACHE, persist_result=False)
def add_milestones(spec: RunSpec, run_directory: str, numbers: list[int]) -> None:
    """Publish the policies by hard links and ``dvc add`` them, each on its own: no stage's lock has a part in it. What
    made them stands beside, in a file for git.

    What fails is logged and stops no training; the next milestone, the end or the next start tries again.
    """
    run = RunDirectory(Path(run_directory))
    targets = [spec.paths.milestone(run.path.name, number) for number in numbers]
    try:
        with concurrency_slot(DVC_LIMIT, PATIENCE):
            for number, target in zip(numbers, targets, strict=True):
                publish(run.checkpoint(number) / "policy", target)
                record_policy(run.path, f"milestones/{target.name}", number, target)
                publish_record(run.path, number, spec.paths.work, target.with_suffix(".json"))
            dvc.add_milestones(spec.paths.root, targets)
        for number in numbers:
            run.mark_versioned(number)
    except Exception as error:  # of DVC, of the server, of the disk
        log.warning("milestones %s are not versioned yet: %s", ", ".join(map(str, numbers)), error)
    else:
        log.info("versioned %s", ", ".join(f"{target}.dvc" for target in targets))


def _is_versioned(spec: RunSpec, run: RunDirectory, number: int) -> bool:
    return run.is_versioned(number) and dvc.is_added(spec.paths.milestone(run.path.name, number))


def find_record(spec: RunSpec, reference: Reference) -> Path | None:
    """What training published beside a revision's checkpoint; None where the revision has nothing of the kind."""
    asked = Path(reference.place)
    if reference.revision is None:
        return None
    if asked.is_relative_to(MILESTONES):
        place = asked.with_suffix(".json").as_posix()
    elif "checkpoints" in asked.parts:
        output = Path(*asked.parts[: asked.parts.index("checkpoints")])
        place = (output / "metrics" / "train" / PUBLISHED).as_posix()
    else:
        return None
    with open_run(spec.paths.work, "model", {"at": reference.revision, "path": place}, spec.paths.root) as run:
        target = run.path / PUBLISHED
        try:
            if not target.is_file():
                dvc.fetch(spec.paths.root, reference.revision, place, target)
        except SPOError as error:  # made before such records were, or by a run that versions its policy alone
            log.warning("%s: no record of what made it: %s", reference.name, error)
            return None
        return target


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
            dvc.fetch(spec.paths.root, reference.revision, reference.place, fetched)
            fetched.rename(folder)
        return folder_model(reference.name, folder)
