"""The working directory of a run, from which a killed run goes on: lock, manifest, complete checkpoints, metrics.

work/<stage>-<fingerprint or name>/
  lock                     held while a process owns the directory; names its process and host
  manifest.json            identity (all that decides the weights) and provenance (code revision, versions)
  iterations/000007/       what the tasks of one iteration exchange; trees and credits of the newest ones alone
  checkpoints/000010/      a resumable state; COMPLETE is written last and lists every file with its size
    MILESTONE, VERSIONED   mark a checkpoint that is kept for good, and one whose policy DVC has
  best/000008/             policy/ with the highest validation accuracy so far, and COMPLETE
  metrics.jsonl            one line an iteration
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from spo_core.config import digest, flatten
from spo_core.errors import RunError
from spo_core.system.files import atomic_directory, read_json, read_jsonl, room_at, write_json, write_text

log = logging.getLogger(__name__)
COMPLETE = "COMPLETE"
NOT_CODE = (":!dvc.lock", ":!metrics", ":!plots", ":!outputs")  # git pathspecs: tracked, but written by stages
MILESTONE = "MILESTONE"
ROLLOUTS = ("credits.parquet", "trees.parquet")  # the large files of an iteration
SECONDS = "seconds.json"  # of an iteration: how long each of its questions took; a replay has none
VERSIONED = "VERSIONED"


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """An open, locked working directory; made by ``open_run``."""

    path: Path

    def iteration(self, number: int) -> Path:
        return self.path / "iterations" / f"{number:06d}"

    def checkpoint(self, number: int) -> Path:
        return self.path / "checkpoints" / f"{number:06d}"

    def best(self, number: int) -> Path:
        """Folder of the policy after iteration ``number``, the best so far."""
        return self.path / "best" / f"{number:06d}"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def records(self, last_iteration: int) -> list[Path]:
        """Files that a run publishes: manifest, metrics, and of the last iteration questions, trees, credits and, where
        they are known, the questions' seconds."""
        folder = self.iteration(last_iteration)
        files = [self.path / "manifest.json", self.metrics_file]
        files += [folder / name for name in ("questions.json", "trees.parquet", "credits.parquet")]
        return files + [path for path in [folder / SECONDS] if path.is_file()]

    def start_iteration(self, number: int) -> Path:
        """Make an empty folder for an iteration, removing whatever an interrupted one left there."""
        folder = self.iteration(number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def save_checkpoint(
        self, number: int, write: Callable[[Path], None], keep: int, milestone_every: int | None = None
    ) -> Path:
        """Let ``write`` fill a checkpoint and make it complete in one rename; then delete earlier ones but the newest
        ``keep`` and the milestones. What was saved as a milestone stays one, whatever the param is later."""
        target = self.checkpoint(number)

        def fill(folder: Path) -> None:
            write(folder)
            if is_milestone(number, milestone_every):
                write_text(folder / MILESTONE, "")

        if self.metrics_file.is_file():
            _flush(self.metrics_file)  # a power cut must lose no row of an iteration before the checkpoint
        _fill(target, fill)
        kept, folders = self.checkpoints()[-keep:], list(target.parent.iterdir())
        for left_over in (p for p in folders if p.suffix in (".tmp", ".old")):  # by a killed process
            shutil.rmtree(left_over)
        for old in (p for p in folders if p.name.isdigit() and int(p.name) < number):
            if int(old.name) not in kept and not self._for_good(int(old.name), milestone_every):
                # renamed first: half deleted under its own name it would count as a damaged checkpoint
                shutil.rmtree(old.rename(old.with_name(f".{old.name}.old")))
        return target

    def keep_rollouts(self, last: int, newest: int | None) -> None:
        """Delete trees and credits of all iterations up to ``last`` but the ``newest`` ones; None keeps all.

        Those of an iteration with a checkpoint stay: a run may be told to end there, and would publish them.
        """
        checkpoints = self.path / "checkpoints"
        kept = {p.name for p in checkpoints.iterdir()} if checkpoints.is_dir() else set()
        if newest is None:
            return
        for folder in self.iteration(last).parent.iterdir():
            if folder.name.isdigit() and int(folder.name) <= last - newest and folder.name not in kept:
                for name in ROLLOUTS:
                    (folder / name).unlink(missing_ok=True)

    def milestones(self, every: int | None) -> list[int]:
        """Numbers of the complete checkpoints that are kept for good, rising."""
        return [number for number in self.checkpoints() if self._for_good(number, every)]

    def _for_good(self, number: int, every: int | None) -> bool:
        return is_milestone(number, every) or (self.checkpoint(number) / MILESTONE).is_file()

    def is_versioned(self, number: int) -> bool:
        """Whether DVC has the policy of this checkpoint, not of an earlier one of the same number."""
        return (self.checkpoint(number) / VERSIONED).is_file()

    def mark_versioned(self, number: int) -> None:
        write_text(self.checkpoint(number) / VERSIONED, "")

    def save_best(self, number: int, write: Callable[[Path], None]) -> None:
        """Let ``write`` fill the folder of the best policy, after iteration ``number``, in one rename."""
        _fill(self.best(number), write)

    def has_best(self, number: int) -> bool:
        """Whether that best policy is there and undamaged."""
        return _complete(self.best(number))

    def keep_bests(self, numbers: Container[int]) -> None:
        """Delete all best policies but these; others may be left from before a resume."""
        folder = self.path / "best"
        for old in folder.iterdir() if folder.is_dir() else ():
            if not (old.name.isdigit() and int(old.name) in numbers):
                shutil.rmtree(old)

    def checkpoints(self) -> list[int]:
        """Numbers of the complete checkpoints, rising; a damaged one is left out and logged."""
        folder = self.path / "checkpoints"
        names = sorted(p.name for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []
        return [int(name) for name in names if _complete(folder / name)]

    def latest_checkpoint(self) -> int | None:
        """Number of the newest complete checkpoint, if there is one."""
        numbers = self.checkpoints()
        return numbers[-1] if numbers else None

    def resume_point(self) -> int | None:
        """Number of the newest complete checkpoint; None for a run that has saved none yet. Raises RunError where all
        are damaged: to begin anew would drop the metrics and iterations that are there."""
        number, folder = self.latest_checkpoint(), self.path / "checkpoints"
        if number is None and folder.is_dir() and any(p.name.isdigit() for p in folder.iterdir()):
            raise RunError(f"{folder}: all checkpoints are damaged; put one back, or delete them to start over")
        return number

    def read_metrics(self) -> list[dict[str, Any]]:
        return read_rows(self.metrics_file) if self.metrics_file.is_file() else []

    def rewind_metrics(self, last_iteration: int) -> None:
        """Drop the lines of iterations after ``last_iteration``, and a line that a kill cut off."""
        kept = []
        if self.metrics_file.is_file():
            for _, line in read_jsonl(self.metrics_file):
                try:
                    row = json.loads(line)
                except ValueError:
                    break
                if row["iteration"] <= last_iteration:
                    kept.append(line.rstrip("\n") + "\n")
        write_text(self.metrics_file, "".join(kept))

    def append_metrics(self, row: dict[str, Any]) -> None:
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")


STEPS = ("rollout", "advantage", "train", "validate")
"""Steps of an iteration; a row of metrics has the seconds of each as ``timing/<step>``."""


def step_seconds(row: Mapping[str, Any]) -> float:
    """Sum the seconds of all steps of an iteration."""
    return sum(row.get(f"timing/{step}", 0.0) for step in STEPS)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl."""
    return [json.loads(line) for _, line in read_jsonl(path)]


def is_milestone(iteration: int, every: int | None) -> bool:
    """Whether an iteration's policy is published as a milestone; ``every`` is ``run.milestone_every``."""
    return every is not None and iteration % every == 0


def _fill(target: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a folder that appears in one rename, with COMPLETE listing its files; flushed to disk, so that
    a power cut does not undo it after its predecessor is deleted."""
    with atomic_directory(target) as folder:
        write(folder)
        sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
        write_json(folder / COMPLETE, sizes)
        for path in [*folder.rglob("*"), folder]:
            _flush(path)
    _flush(target.parent)


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError) if path.is_dir() else nullcontext():  # not every file system can flush a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _complete(folder: Path) -> bool:
    try:
        sizes = read_json(folder / COMPLETE)
    except (OSError, ValueError):
        if folder.is_dir():
            log.warning("%s is damaged (%s), so it counts for nothing", folder, COMPLETE)
        return False
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            log.warning("%s is damaged (%s), so it counts for nothing", folder, name)
            return False
    return True


@contextmanager
def open_run(
    work: Path, stage: str, identity: dict[str, Any], root: Path, name: str | None = None
) -> Iterator[RunDirectory]:
    """Lock and open the working directory of a run, making it if it is new.

    ``identity`` holds all that decides the result; its digest names the directory unless ``name`` does. Raises RunError
    where another process owns the directory, or where a named one has another identity (and says which keys differ);
    DiskError where writing in this context fails for want of room.
    """
    path = run_path(work, stage, identity, name)
    with room_at(path), _locked(path):
        manifest = path / "manifest.json"
        if manifest.is_file():
            _refuse_other_identity(manifest, identity)
        else:
            write_json(manifest, {"identity": identity, "provenance": provenance(root)})
        yield RunDirectory(path)


def check_run(work: Path, stage: str, identity: dict[str, Any], name: str | None = None) -> RunDirectory:
    """Raise what ``open_run`` would raise, and write nothing; returns the directory, unlocked."""
    path = run_path(work, stage, identity, name)
    if (path / "manifest.json").is_file():
        _refuse_other_identity(path / "manifest.json", identity)
        with (path / "lock").open("r+") as file:  # NFS locks only files opened for writing
            _take(file, path)
    return RunDirectory(path)


def run_path(work: Path, stage: str, identity: dict[str, Any], name: str | None) -> Path:
    """Working directory of a run; ``name`` takes the place of its identity's digest."""
    return work / f"{stage}-{name or digest(identity)[:12]}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.mkdir(parents=True, exist_ok=True)
    with (path / "lock").open("a+") as file:
        _take(file, path)
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def _take(file: TextIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise RunError(f"{path} is in use by {holder}; wait for it, or stop it first") from None
    except OSError as error:
        raise RunError(
            f"{path}: files cannot be locked on its file system ({error.strerror}); set SPO_WORK_DIR to another one"
        ) from None


def _refuse_other_identity(manifest: Path, identity: dict[str, Any]) -> None:
    before = flatten(read_json(manifest)["identity"])
    now = flatten(json.loads(json.dumps(identity)))
    differ = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if differ:
        shown = ", ".join(f"{k} (was {before.get(k)!r}, is {now.get(k)!r})" for k in differ[:3])
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise RunError(
            f"{manifest.parent} was made with other params: {shown}{more}; change them back, or choose another run.name"
        )


def provenance(root: Path) -> dict[str, Any]:
    """Code revision and versions of the packages that matter; informative, never part of a run's identity."""

    def git(*arguments: str) -> str:
        result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return result.stdout.strip() if result.returncode == 0 else ""

    return {
        "code_revision": git("rev-parse", "HEAD") or "unknown",
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no", "--", ".", *NOT_CODE)),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "prefect", "dvc")},
    }
