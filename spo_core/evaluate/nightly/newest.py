"""Finds the newest checkpoint of all training runs, and keeps it while it is evaluated: training may delete it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from spo_core.config import Params
from spo_core.errors import DataError
from spo_core.evaluate.models import Model, folder_model
from spo_core.paths import Paths
from spo_core.problems import problem_set
from spo_core.problems.mixture import described
from spo_core.runs.directory import COMPLETE, RunDirectory, open_run
from spo_core.system.files import publish, read_json

log = logging.getLogger(__name__)
ATTEMPTS = 5  # to link a checkpoint: where one is deleted meanwhile there is a newer one


@dataclass(frozen=True, slots=True)
class Found:
    """A complete checkpoint of a training run."""

    run: Path
    """The run's working directory."""
    iteration: int

    @property
    def folder(self) -> Path:
        return RunDirectory(self.run).checkpoint(self.iteration)

    @property
    def name(self) -> str:
        return f"{self.run.name}/{self.iteration:06d}"


def newest_checkpoint(work: Path, params: Params) -> Found | None:
    """The checkpoint completed last of all training runs with the problem set and prompts of ``params``, or None."""
    problem = problem_set(params.data)
    trained_on = {
        "problem_set": params.data.problem_set,
        "prompts": described(problem),
    }
    newest: Found | None = None
    completed = 0.0
    for manifest in sorted(work.glob("train-*/manifest.json")):
        try:
            identity = read_json(manifest)["identity"]
            number = RunDirectory(manifest.parent).latest_checkpoint()
            if number is None or {key: identity.get(key) for key in trained_on} != trained_on:
                continue
            found = Found(manifest.parent, number)
            time = (found.folder / COMPLETE).stat().st_mtime
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # damaged, or being deleted
            log.info("%s is passed over: %r", manifest.parent, error)
            continue
        if newest is None or time > completed:
            newest, completed = found, time
    return newest


@contextmanager
def newest_model(paths: Paths, params: Params) -> Iterator[tuple[Found, Model] | None]:
    """The newest checkpoint and its policy, kept by hard links while the context lasts; None where there is none.

    Raises RunError where another process is in this context, DataError where the policy cannot be linked.
    """
    with open_run(paths.work, "nightly", {}, paths.root, "policy") as directory:
        taken = directory.path / "policy"
        try:
            found = _take_newest(paths.work, params, taken)
            yield None if found is None else (found, folder_model(found.name, taken))
        finally:
            shutil.rmtree(taken, ignore_errors=True)


def _take_newest(work: Path, params: Params, target: Path) -> Found | None:
    for attempt in range(1, ATTEMPTS + 1):
        found = newest_checkpoint(work, params)
        if found is None:
            return None
        try:
            _take(found, target)
            return found
        except OSError as error:
            if attempt == ATTEMPTS:
                raise DataError(f"{found.folder}: its policy cannot be taken: {error}") from None
    return None


def _take(found: Found, target: Path) -> None:
    """Link the checkpoint's policy to ``target``. Raises OSError where some of it was deleted meanwhile."""
    sizes: dict[str, int] = read_json(found.folder / COMPLETE)
    publish(found.folder / "policy", target)
    for name, size in sizes.items():
        part = target.parent / name
        if name.startswith("policy/") and part.stat().st_size != size:
            raise FileNotFoundError(f"{part} has not its {size} bytes")
