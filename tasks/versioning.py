"""Versions with DVC what flows publish, and fetches policies of other revisions."""

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
DVC_LIMIT = "dvc"  # Prefect's limit for writing to the DVC repository, where the server has it
PATIENCE = 60.0  # seconds that training waits for a slot of it


@task(name="record outputs", cache_policy=NO_CACHE, persist_result=False)
def record_outputs(spec: RunSpec, *stages: str) -> None:
    """Commit the main run's ``stages`` to DVC, or add the trained policy of a run with overrides; everything else of
    such a run follows from policy and params. Under ``dvc repro``, which records outputs itself, do nothing."""
    root = spec.paths.root
    if os.environ.get("DVC_STAGE") or not dvc.is_repository(root):
        return
    with concurrency_slot(DVC_LIMIT):
        if spec.run_name is None:
            dvc.commit_stages(root, *stages)
        elif "train" in stages:
            dvc.add_output(root, spec.paths.checkpoint("final"))


def version_milestones(spec: RunSpec, run: RunDirectory, every: int | None) -> None:
    """Version the policies of all milestones that DVC does not have yet; ``every`` is ``run.milestone_every``."""
    if dvc.is_repository(spec.paths.root):
        waiting = [number for number in run.milestones(every) if not _is_versioned(spec, run, number)]
        if waiting:
            add_milestones(spec, str(run.path), waiting)


@task(name="version milestones", cache_policy=NO_CACHE, persist_result=False)
def add_milestones(spec: RunSpec, run_directory: str, numbers: list[int]) -> None:
    """Publish policies by hard links with their provenance beside them, and ``dvc add`` each, outside all stages.

    A failure is logged and does not stop training; the next milestone, the end or the next start tries again.
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
    except Exception as error:  # DVC, the server and the disk raise errors of many types
        log.warning("milestones %s are not versioned yet: %s", ", ".join(map(str, numbers)), error)
    else:
        log.info("versioned %s", ", ".join(f"{target}.dvc" for target in targets))


def _is_versioned(spec: RunSpec, run: RunDirectory, number: int) -> bool:
    return run.is_versioned(number) and dvc.is_added(spec.paths.milestone(run.path.name, number))


def cache_of(root: Path) -> tuple[Path, tuple[str, ...]] | None:
    """Folder of DVC's cache, and the kinds of link to try in order; None where there is no repository. Raises SPOError
    where DVC's configuration cannot be read."""
    return dvc.cache(root) if dvc.is_repository(root) else None


def describe_repository(root: Path) -> str | None:
    """Name DVC's remotes in a line; None where the folder is no repository of git and DVC. Raises SPOError where DVC
    fails."""
    if not dvc.is_repository(root):
        return None
    remotes = [line.split()[0] for line in dvc.run_dvc(root, "remote", "list", patient=False).splitlines() if line]
    return f"a repository, {'remotes ' + ', '.join(remotes) if remotes else 'no remote: versions stay here'}"


def find_record(spec: RunSpec, reference: Reference) -> Path | None:
    """File of the provenance published with a revision's checkpoint; None where the revision has none."""
    asked = Path(reference.location)
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
        except SPOError as error:  # a revision older than such records, or a run that versions its policy alone
            log.warning("%s: no record of what made it: %s", reference.name, error)
            return None
        return target


@task(name="find model", cache_policy=NO_CACHE, persist_result=False)
def find_model(spec: RunSpec, reference: Reference) -> Model:
    """Fetch the policy that was asked for. Raises SPOError where git, DVC or the hub does not give it."""
    if reference.kind == "hub":
        return folder_model(reference.name, download(reference))
    if reference.revision is None:
        return folder_model(reference.name, Path(reference.location))
    with open_run(
        spec.paths.work, "model", {"at": reference.revision, "path": reference.location}, spec.paths.root
    ) as run:
        folder = run.path / "policy"
        if not folder.exists():
            fetched = run.path / "fetched"
            dvc.fetch(spec.paths.root, reference.revision, reference.location, fetched)
            fetched.rename(folder)
        return folder_model(reference.name, folder)
