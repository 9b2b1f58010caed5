"""Records by which a run's policies can be traced: every start of the run, and the digest of every published policy.

Beside manifest.json in the run's working directory stand
  attempts.jsonl           one line a start: when, by which flow run, from which code, on which machine
  policies.jsonl           one line a published policy: its name, its iteration, the digest that its scores carry
For places without work/, metrics/train/provenance.json holds both, with those of the run's warm-up; so does a file
beside each milestone.
"""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from spo_core.errors import DataError
from spo_core.runs.directory import provenance
from spo_core.system.files import folder_digest, read_json, read_jsonl, write_json

log = logging.getLogger(__name__)
ATTEMPTS, POLICIES, PUBLISHED = "attempts.jsonl", "policies.jsonl", "provenance.json"


@dataclass(frozen=True, slots=True)
class Caller:
    """Preset, overrides and flow run that start a run. Ids and names are Prefect's; None outside a flow."""

    preset: str | None = None
    overrides: tuple[str, ...] = ()
    flow_run_id: str | None = None
    flow_run_name: str | None = None
    deployment: str | None = None
    """``flow/name`` of the deployment that the flow, or the flow that called it, was started by."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of a run."""

    started: str
    """ISO 8601, with the timezone."""
    first_iteration: int
    """First iteration that this start makes, from 1; for a warm-up the first optimizer step."""
    caller: Caller
    dvc_stage: str | None
    code_revision: str
    uncommitted_changes: bool
    host: str
    process: int
    cpu: str
    """Instruction set of torch's kernels: AVX2, AVX512, ... With another one sums are rounded differently."""
    wandb: dict[str, str] | None = None
    """``project``, ``id``, ``mode``, and ``url`` where W&B is online; None where it is disabled."""
    device: str = "cpu"
    """Device that trains: ``cpu``, or the name of the GPU."""

    @property
    def kernels(self) -> str:
        """Kind of device and kernels, which decides how sums are rounded."""
        return f"a CPU with {self.cpu}" if self.device == "cpu" else self.device


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy that a run published. ``digest``: SHA-256 over its folder, as ``model_digest`` of its scores."""

    name: str
    """``warmup``, ``final``, ``best``, or a milestone's folder."""
    iteration: int
    """Iteration after which the policy was taken."""
    digest: str


@dataclass(frozen=True, slots=True)
class RunRecord:
    """All that the files say of a run. ``made_with`` is the provenance of its first start (code revision, versions),
    ``warmup`` the record of the run that made its first policy, where one is known."""

    directory: str
    """Name of its working directory."""
    identity: dict[str, Any]
    made_with: dict[str, Any]
    attempts: tuple[Attempt, ...]
    policies: tuple[Policy, ...]
    warmup: RunRecord | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> RunRecord:
        """Read what ``to_json`` gave. Raises KeyError or TypeError for anything else."""
        warmup = content["warmup"]
        return cls(
            content["directory"],
            content["identity"],
            content["made_with"],
            tuple(map(_attempt, content["attempts"])),
            tuple(Policy(**policy) for policy in content["policies"]),
            None if warmup is None else cls.from_json(warmup),
        )


def record_attempt(
    run: Path,
    root: Path,
    first_iteration: int,
    caller: Caller,
    wandb: dict[str, str] | None = None,
    device: str = "cpu",
) -> Attempt:
    """Add a start to the run directory's attempts.jsonl. Logs a warning where the start before was on another kind of
    CPU or GPU, so that the run's bits will not be those of an uninterrupted one."""
    from torch.backends.cpu import get_cpu_capability  # here, as reading records should not import torch

    code = provenance(root)
    attempt = Attempt(
        started=datetime.now().astimezone().isoformat(timespec="seconds"),
        first_iteration=first_iteration,
        caller=caller,
        dvc_stage=os.environ.get("DVC_STAGE"),
        code_revision=code["code_revision"],
        uncommitted_changes=code["uncommitted_changes"],
        host=platform.node(),
        process=os.getpid(),
        cpu=get_cpu_capability(),
        wandb=wandb,
        device=device,
    )
    before = [_attempt(row).kernels for row in _rows(run / ATTEMPTS, Attempt)]
    if before and before[-1] != attempt.kernels:
        log.warning("%s was on %s, now on %s: sums round otherwise from here on", run, before[-1], attempt.kernels)
    _append(run / ATTEMPTS, asdict(attempt))
    return attempt


def record_policy(run: Path, name: str, iteration: int, folder: Path) -> Policy:
    """Add a published policy to the run directory's policies.jsonl, once; reads all of its files."""
    policy = Policy(name, iteration, folder_digest(folder))
    if policy not in known_policies(run):
        _append(run / POLICIES, asdict(policy))
    return policy


def known_policies(run: Path) -> tuple[Policy, ...]:
    """Read the policies in a run directory's policies.jsonl, the oldest first."""
    return tuple(Policy(**row) for row in _rows(run / POLICIES, Policy))


def read_run(run: Path) -> RunRecord | None:
    """The record of a run from its working directory, without its warm-up; None where that is no run's."""
    try:
        manifest = read_json(run / "manifest.json")
        identity, made_with = dict(manifest["identity"]), dict(manifest.get("provenance") or {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    attempts = tuple(_attempt(row) for row in _rows(run / ATTEMPTS, Attempt))
    return RunRecord(run.name, identity, made_with, attempts, known_policies(run))


def publish_record(run: Path, last_iteration: int, work: Path, target: Path) -> None:
    """Write the record of a run up to an iteration, with that of its warm-up, to ``target``.

    Later starts are left out, so that publishing a finished run again gives the same file. Raises DataError where the
    run's manifest is missing or damaged.
    """
    record = read_run(run)
    if record is None:
        raise DataError(f"{run / 'manifest.json'}: missing or damaged, so the run's policies could not be traced")
    made = find_policy(work_runs(work, "warmup-*"), str(record.identity.get("policy")))
    warmup = None if made is None else until(*made)
    write_json(target, replace(until(record, last_iteration), warmup=warmup).to_json())


def read_published(path: Path) -> RunRecord | None:
    """Read what ``publish_record`` wrote; None where the file is missing or something else."""
    try:
        return RunRecord.from_json(read_json(path))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def work_runs(work: Path, pattern: str = "*") -> Iterator[RunRecord]:
    """Yield the run records of all working directories, in the order of their names."""
    for manifest in sorted(work.glob(f"{pattern}/manifest.json")):
        if (record := read_run(manifest.parent)) is not None:
            yield record


def until(run: RunRecord, last: Policy | int) -> RunRecord:
    """The record without the starts and policies that came after a policy or an iteration."""
    number = last if isinstance(last, int) else last.iteration
    attempts = tuple(a for a in run.attempts if a.first_iteration <= number)
    return replace(run, attempts=attempts, policies=tuple(p for p in run.policies if p.iteration <= number))


def find_policy(
    runs: Iterable[RunRecord], digest: str, preferred: Container[str] = ()
) -> tuple[RunRecord, Policy] | None:
    """The run that published a policy of this digest, and that policy. Of several runs, one of the ``preferred``
    directories is taken, then the one that was started last."""
    found = [(run, policy) for run in runs for policy in run.policies if policy.digest == digest]

    def rank(made: tuple[RunRecord, Policy]) -> tuple[bool, float]:
        run = made[0]
        last = datetime.fromisoformat(run.attempts[-1].started).timestamp() if run.attempts else 0.0
        return run.directory in preferred, last

    return max(found, key=rank, default=None)


def _attempt(row: Mapping[str, Any]) -> Attempt:
    caller = row["caller"]
    return Attempt(**{**row, "caller": Caller(**{**caller, "overrides": tuple(caller["overrides"])})})


def _append(path: Path, row: dict[str, Any]) -> None:
    """Append one JSON line; a last line that a kill cut off is ended first."""
    cut_off = path.is_file() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if cut_off else "") + json.dumps(row, allow_nan=False) + "\n")


def _rows(path: Path, kind: type) -> Iterator[dict[str, Any]]:
    """Rows that have exactly the fields of ``kind``; others were cut off, or written by another version."""
    for _, line in read_jsonl(path) if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.keys() == {field.name for field in fields(kind)}:
            yield row
