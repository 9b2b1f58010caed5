"""Finds runs: working directories in work/, and what finished ones published. Reads small files alone."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from spo_core.config import digest, load_params
from spo_core.errors import DataError, SPOError
from spo_core.observe.formatting import visible
from spo_core.paths import Paths
from spo_core.runs.lineage import run_params
from spo_core.runs.provenance import PUBLISHED, Caller, RunRecord, read_published, read_run
from spo_core.system.files import folder_digest

KINDS = ("train", "replay", "rollouts")  # stages that have iterations
MAIN = "published/main"
DIGESTS = ("data", "policy", "code", "replay", "prompts", "prover", "custom")  # parts of an identity shown as digests
SEED = "run.seed"


@dataclass(frozen=True, slots=True)
class Run:
    """A training run, by its files. ``key`` is its place and name, as in addresses: ``work/train-1f00``."""

    key: str
    folder: Path
    """Folder with manifest.json and metrics.jsonl; a working directory also has iterations/."""
    kind: str
    record: RunRecord
    output: Path | None
    """Folder that the run published to, with checkpoints/ and metrics/; None before it has."""
    published: str | None
    """Key under which it was published, where a working directory stands for it."""
    running: bool
    """Whether a process of this machine holds its lock."""
    wanted: int | None = None
    """Iterations that were asked for, of a run that only samples: it publishes no policy, which would tell its end."""

    @property
    def name(self) -> str:
        return self.key.partition("/")[2]

    @property
    def title(self) -> str:
        """The name that a person gave it, where there is one."""
        return self.published.partition("/")[2] if self.published else self.name

    @property
    def params(self) -> dict[str, Any]:
        """Params that decide its weights, flat, with digests, shortened, of all else that does: files, recorded
        rollouts, and how the sets ask, with the weights of a mixture."""
        own = self.record.identity
        digests = {key: value if isinstance(value := own[key], str) else digest(value) for key in DIGESTS if key in own}
        return run_params(self.record) | {f"digest of {key}": value[:12] for key, value in digests.items()}

    @property
    def caller(self) -> Caller:
        return _caller(self.record)

    @property
    def finished(self) -> bool:
        """Whether the policy after its last iteration was published, or it was read from what it published; of one that
        only samples, whether it has made all iterations."""
        if not self.key.startswith("work/"):
            return True
        last = self.last_row().get("iteration", 0)
        if self.kind == "rollouts":
            return self.wanted is not None and last >= self.wanted
        return any(policy.name == "final" and policy.iteration == last for policy in self.record.policies)

    @property
    def state(self) -> str:
        return "running" if self.running else "finished" if self.finished else "stopped"

    def last_row(self) -> dict[str, Any]:
        """Metrics of its last whole iteration; empty before there is one."""
        return _last_row(self.folder / "metrics.jsonl")

    def rows(self) -> list[dict[str, Any]]:
        """Metrics of all iterations; a line that is being written is left out."""
        return list(_rows(self.folder / "metrics.jsonl"))

    def iteration_folders(self) -> dict[int, Path]:
        """Folders of the iterations whose questions are kept, by number, rising."""
        folder = self.folder / "iterations"
        if folder.is_dir():
            found = sorted(p for p in folder.iterdir() if p.name.isdigit())
            return {int(p.name): p for p in found if (p / "questions.json").is_file()}
        last = self.last_row().get("iteration")  # what is published has the last one's, without a folder of its own
        return {last: self.folder} if last and (self.folder / "questions.json").is_file() else {}

    def policies(self) -> dict[str, Path]:
        """Folders of the policies that are there, by name: checkpoints by number, then what was published."""
        found = {
            f"{kind}/{p.name}": p / "policy"
            for kind in ("checkpoints", "best")
            for p in sorted((self.folder / kind).glob("[0-9]*"))
        }
        if self.output is not None:
            found |= {name: self.output / "checkpoints" / name for name in ("final", "best", "warmup")}
        return {name: path for name, path in found.items() if (path / "config.json").is_file()}


def find_runs(paths: Paths) -> list[Run]:
    """All runs below work/ and outputs/, those written last first. A published run whose working directory is here is
    that directory's."""
    published = dict(_published(paths.root))
    of_work = {r.directory: key for key, (_, r) in published.items() if (paths.work / r.directory).is_dir()}
    found = list(_working(paths, published, of_work))
    found += [_read_only(key, *of_key) for key, of_key in published.items() if of_key[1].directory not in of_work]
    return sorted(found, key=lambda run: -written(run))


def _working(
    paths: Paths, published: Mapping[str, tuple[Path, RunRecord]], of_work: Mapping[str, str], only: str | None = None
) -> Iterator[Run]:
    """Runs below work/, or the one whose key is ``only``."""
    locks = held_locks()
    for folder in sorted(paths.work.iterdir()) if paths.work.is_dir() else ():
        kind, key = folder.name.partition("-")[0], f"work/{visible(folder.name)}"
        if kind not in KINDS or only not in (None, key) or (record := read_run(folder)) is None:
            continue
        shown = of_work.get(folder.name)
        output = published[shown][0] if shown else None
        wanted = _asked_for(_caller(record), paths.root) if kind == "rollouts" else None
        yield Run(key, folder, kind, record, output, shown, _is_held(folder / "lock", locks), wanted)


def _read_only(key: str, output: Path, record: RunRecord) -> Run:
    """A run of which nothing but what it published is here."""
    return Run(key, output / "metrics" / "train", record.directory.partition("-")[0], record, output, None, False)


def find_run(paths: Paths, key: str) -> Run:
    """The run of a key, of what it published or of its working directory. Keys are compared, never made into paths.
    Raises DataError for an unknown one."""
    published = dict(_published(paths.root))
    of_work = {r.directory: k for k, (_, r) in published.items() if (paths.work / r.directory).is_dir()}
    if key in published:
        output, record = published[key]
        if record.directory not in of_work:
            return _read_only(key, output, record)
        key = f"work/{visible(record.directory)}"
    for run in _working(paths, published, of_work, only=key):
        return run
    raise DataError(f"{key}: no such run here; the first page lists those that are")


def named_run(paths: Paths, name: str) -> Run:
    """The run that a command line names: its key, its name, or its folder. Raises DataError, with all names, for an
    unknown one or a name of two."""
    runs = find_runs(paths)
    folder = (Path.cwd() / name).resolve()
    found = [r for r in runs if name in (r.key, r.published, r.name, r.title) or folder in (r.folder, r.output)]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"{name}: {len(found)} runs have this name: {', '.join(run.key for run in found)}")
    known = ", ".join(run.key for run in runs[:8]) + (", ..." if len(runs) > 8 else "")
    raise DataError(f"{name}: no such run below work/ or outputs/; there are: {known or 'none'}")


def written(run: Run) -> float:
    """Time of the last whole iteration, in seconds since 1970; 0 before there is one."""
    with suppress(OSError):
        return (run.folder / "metrics.jsonl").stat().st_mtime
    return 0.0


def planned_iterations(run: Run, root: Path) -> int | None:
    """Iterations that the command which started a run last asked for; None where params/ no longer says."""
    return _asked_for(run.caller, root)


def _caller(record: RunRecord) -> Caller:
    return record.attempts[-1].caller if record.attempts else Caller()


def _asked_for(caller: Caller, root: Path) -> int | None:
    changed = max((path.stat().st_mtime for path in (root / "params").rglob("*.yaml")), default=0.0)
    return _planned(root, caller.preset, caller.overrides, changed)


@lru_cache(maxsize=256)
def _planned(root: Path, preset: str | None, overrides: tuple[str, ...], stamp: float) -> int | None:
    try:
        return load_params(root, preset, overrides).run.iterations
    except SPOError:
        return None


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Params that differ among runs: the value of each run, by key; None where a run has no such key."""
    flat = [run.params for run in runs]
    keys = sorted({key for params in flat for key in params})
    values = {key: [params.get(key) for params in flat] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def peculiar(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """What sets each run apart: its params that are not those of most runs, by the run's key."""
    found: dict[str, dict[str, Any]] = {run.key: {} for run in runs}
    for key, values in differing(runs).items():
        texts = [json.dumps(value, sort_keys=True) for value in values]
        usual = Counter(texts).most_common(1)[0][0]
        for run, value, text in zip(runs, values, texts, strict=True):
            if text != usual:
                found[run.key][key] = value
    return found


def seed_groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of one kind that differ in their seed alone, together; the code may differ too."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        same = {k: v for k, v in run.params.items() if k not in (SEED, "digest of code")} | {"kind": run.kind}
        groups.setdefault(json.dumps(same, sort_keys=True, default=str), []).append(run)
    return list(groups.values())


def _published(root: Path) -> Iterator[tuple[str, tuple[Path, RunRecord]]]:
    places = [(MAIN, root)] + [(f"outputs/{visible(p.name)}", p) for p in sorted((root / "outputs" / "runs").glob("*"))]
    for key, output in places:
        folder = output / "metrics" / "train"
        if (record := read_published(folder / PUBLISHED)) is not None:
            yield key, (output, record)
        elif (told := read_run(folder)) is not None:  # published before such records were
            yield key, (output, told)


def first_policy(run: Run, paths: Paths) -> Path | None:
    """Folder of the policy that a run began from, where one of the project's has its digest: for runs that have saved
    no checkpoint yet. Reads all files of those policies, once."""
    asked = str(run.record.identity.get("policy"))
    for output in (paths.root, *sorted((paths.root / "outputs" / "runs").glob("*"))):
        folder = output / "checkpoints" / "warmup"
        if (folder / "config.json").is_file() and _digest(folder, (folder / "config.json").stat().st_mtime_ns) == asked:
            return folder
    return None


@lru_cache(maxsize=64)
def _digest(folder: Path, stamp: int) -> str:
    return folder_digest(folder)


def held_locks() -> frozenset[int]:
    """Inodes of the files that some process of this machine has locked. Asked of the system, as taking a lock to see
    whether it is free would refuse a run that starts at that moment."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(int(line.split()[5].rpartition(":")[2]) for line in lines if "FLOCK" in line and "->" not in line)


def _is_held(lock: Path, held: frozenset[int]) -> bool:
    with suppress(OSError):
        return lock.stat().st_ino in held
    return False


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            row = _row(line)
            if row is not None:
                yield row


def _row(line: str) -> dict[str, Any] | None:
    with suppress(ValueError):
        row = json.loads(line)
        if isinstance(row, Mapping) and isinstance(row.get("iteration"), int):
            return dict(row)
    return None


def _last_row(path: Path, window: int = 64_000) -> dict[str, Any]:
    """The last whole line, from the end of the file."""
    with suppress(OSError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - window))
        for line in reversed(file.read().decode("utf-8", "replace").split("\n")):
            if (row := _row(line)) is not None:
                return row
    return {}
