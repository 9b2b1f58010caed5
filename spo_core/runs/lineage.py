"""Traces a policy: from its digest to the run, params, data, first policy, code, starts and scores.

Everything is read from files: work/, what training published (metrics/train), and the scores.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spo_core.config import flatten, load_params
from spo_core.config.data import ArithmeticParams
from spo_core.config.policy import LoraParams
from spo_core.errors import DataError, SPOError
from spo_core.runs.fingerprint import TRAINING, code_digest
from spo_core.runs.provenance import (
    PUBLISHED,
    Attempt,
    Caller,
    Policy,
    RunRecord,
    find_policy,
    read_published,
    read_run,
    until,
    work_runs,
)
from spo_core.system.files import file_digest, folder_digest, read_json

INPUTS = (  # parts of an identity that are no params
    *("data", "code", "replay", "rollouts_only", "prompts", "pretrained", "template", "train", "prover", "custom"),
)
DERIVED = ("credit.value.probabilities",)  # follows from params
RENAMED = {  # key in a run's identity -> key in params/
    "problem_set": "data.problem_set",
    "max_question_tokens": "data.max_question_tokens",
    "careless": "data.arithmetic.careless",  # of warm-ups before it was arithmetic.careless
    "mixture": "data.mixture",
    "threads": "run.threads",
    "run.parts": "run.task_runner.shards",
    **{f"arithmetic.{key}": f"data.arithmetic.{key}" for key in ArithmeticParams.model_fields},
    **{f"lora.{key}": f"policy.lora.{key}" for key in LoraParams.model_fields},
}
EMPTY: tuple[Any, ...] = (None, {}, [])  # of a section that is not set
MILESTONES = "outputs/milestones"
NAMED_ALONE = "named by a report"  # name of a policy that is known by run and iteration only
SCORES = (
    "metrics/evaluate/*/*.json",
    "outputs/runs/*/metrics/evaluate/*/*.json",
    "outputs/evaluations/*/*/*.json",
    "reports/nightly/*.json",
)
SAME = {True: "; does the same as the present code", False: "; the present code differs", None: ""}


class UnknownPolicy(SPOError):
    """A policy that no run here made."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A policy to trace: by its digest, or by the run directory and iteration that a report names."""

    name: str
    digest: str | None
    directory: str | None = None
    iteration: int | None = None
    record: Path | None = None
    """File of the run's published record, where that is not among the present files."""
    folder: Path | None = None
    """Where it lies, which tells its run from another of equal bytes."""


def asked_folder(name: str, folder: Path, record: Path | None = None) -> Asked:
    """The policy in a folder, wherever it lies."""
    return Asked(name, folder_digest(folder), record=record, folder=folder)


def asked_score(path: Path) -> Asked:
    """The policy that the file of a score or nightly report is about. Raises DataError where the file is neither."""
    try:
        content = read_json(path)
        iteration = content.get("iteration")
        return Asked(str(path), str(content["model_digest"]), content.get("run"), iteration)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: neither an evaluated cell's file nor a nightly report (no model_digest)") from None


def find_run(asked: Asked, root: Path, work: Path) -> tuple[RunRecord, Policy] | None:
    """The run that made a policy, with that run's record of the policy; None where no run here made it."""
    told = list(published_runs([*published(root), *([asked.record] if asked.record else [])]))
    own = _of_folder(asked, work)
    for runs in (work_runs(work), told):
        mine = [run for run in runs if run.directory in own]
        if asked.digest and (found := find_policy(mine, asked.digest)) is not None:
            return found
    for runs in (work_runs(work), told):
        if asked.digest and (found := find_policy(runs, asked.digest, {run.directory for run in told})) is not None:
            return found
    place = None if asked.digest is None else _unpublished(asked.digest, work, own)
    directory, iteration = place or (asked.directory, asked.iteration)
    if directory is None or iteration is None:
        return None
    run = read_run(work / directory) or next((r for r in told if r.directory == directory), None)
    name = f"checkpoints/{iteration:06d}" if place else NAMED_ALONE
    return None if run is None else (run, Policy(name, iteration, asked.digest or ""))


def _of_folder(asked: Asked, work: Path) -> set[str]:
    """Directories of the runs, a training and its warm-up, to which the asked folder or record belongs; by where it
    lies, not by its bytes."""
    files = [asked.record] if asked.record else []
    if asked.folder is not None:
        folder = asked.folder.resolve()
        if folder.is_relative_to(work.resolve()):
            return {folder.relative_to(work.resolve()).parts[0]}
        files += [folder.parent.parent / "metrics/train" / PUBLISHED, folder.with_suffix(".json")]
    return {run.directory for run in published_runs(files)}


def published(root: Path) -> list[Path]:
    """Files in which training publishes a run's record: the main run's, those below outputs/runs, and milestones'."""
    patterns = (f"outputs/runs/*/metrics/train/{PUBLISHED}", f"{MILESTONES}/*/*.json")
    return [root / "metrics/train" / PUBLISHED, *(path for pattern in patterns for path in sorted(root.glob(pattern)))]


def published_runs(paths: Iterable[Path]) -> Iterator[RunRecord]:
    """Records of the runs that these files describe, and of their warm-ups; files that are missing are skipped."""
    for path in paths:
        if (record := read_published(path)) is not None:
            yield record
            if record.warmup is not None:
                yield record.warmup


def _unpublished(digest: str, work: Path, preferred: set[str]) -> tuple[str, int] | None:
    """Run directory and iteration of the checkpoint in work/ that has this digest, of a preferred run where one has."""
    folders = [*work.glob("*/checkpoints/[0-9]*/policy"), *work.glob("*/best/[0-9]*/policy")]
    for folder in sorted(folders, key=lambda path: path.parts[-4] not in preferred):
        with suppress(OSError):  # training may delete it meanwhile
            if folder_digest(folder) == digest:
                return folder.parts[-4], int(folder.parts[-2])
    return None


def trace(asked: Asked, root: Path, work: Path, link: Callable[[str], str | None] = lambda _: None) -> dict[str, Any]:
    """The policy's lineage as plain JSON; ``link`` maps a flow run's id to its page. Raises UnknownPolicy."""
    found = find_run(asked, root, work)
    if found is None:
        raise UnknownPolicy(f"{asked.name}: unknown; no run in {work} or published below {root} made this policy")
    run, policy = until(*found), found[1]
    chain = {
        "asked": asked.name,
        "policy": {"digest": policy.digest or None, "iteration": policy.iteration}
        | {"names": sorted({p.name for p in run.policies if policy.digest and p.digest == policy.digest})}
        | {"by_name_alone": policy.name == NAMED_ALONE},
        **_run(run, root, work, link),
        "scores": scores(policy.digest, root) if policy.digest else [],
    }
    if _trained(run):
        first = run.identity["policy"]
        warmup = run.warmup
        if warmup is None and (made := find_policy(work_runs(work, "warmup-*"), first)) is not None:
            warmup = until(*made)
        chain["first_policy"] = {"digest": first, "warmup": warmup and _run(warmup, root, work, link)}
    return chain


def _run(run: RunRecord, root: Path, work: Path, link: Callable[[str], str | None]) -> dict[str, Any]:
    tracked = [attempt.wandb for attempt in run.attempts if attempt.wandb]
    changes = ("code_revision", "uncommitted_changes")
    return {
        "run": {"directory": run.directory, "here": (work / run.directory).is_dir()},
        "params": run_params(run),
        "params_now": params_now(run, root),
        "data": {"digest": run.identity.get("data") or run.identity.get("train"), "here": _data_here(run, root)},
        "code": {
            "revision": run.made_with.get("code_revision"),
            "uncommitted_changes": run.made_with.get("uncommitted_changes"),
            "same_now": run.identity.get("code") == code_digest(*TRAINING) if _trained(run) else None,
            "versions": {key: value for key, value in run.made_with.items() if key not in changes},
        },
        "attempts": [_shown(attempt, link) for attempt in run.attempts],
        "wandb": tracked[-1] if tracked else None,
    }


def _trained(run: RunRecord) -> bool:
    """Whether the run is a training, whose identity has the first policy's digest, and not a warm-up."""
    return isinstance(run.identity.get("policy"), str)


def run_params(run: RunRecord) -> dict[str, Any]:
    """The params in a run's identity, under their names in params/."""
    flat = flatten(run.identity)
    if _trained(run):
        del flat["policy"]
    params = {key: value for key, value in flat.items() if key not in DERIVED and key.split(".")[0] not in INPUTS}
    return {RENAMED.get(key, key): value for key, value in params.items()}


def _shown(attempt: Attempt, link: Callable[[str], str | None]) -> dict[str, Any]:
    page = link(attempt.caller.flow_run_id) if attempt.caller.flow_run_id else None
    return asdict(attempt) | {"page": page}


def params_now(run: RunRecord, root: Path) -> dict[str, Any]:
    """The run's params to which params/, with the run's preset and overrides, now gives another value."""
    caller = run.attempts[-1].caller if run.attempts else Caller()
    try:
        params = load_params(root, caller.preset, caller.overrides)
        now = flatten(params.model_dump(mode="json")) | {"run.task_runner.shards": params.run.task_runner.shards}
    except SPOError as error:
        return {"unknown": str(error)}
    was = run_params(run)
    if _trained(run) and not any(key.startswith("policy.lora.") for key in was):
        was["policy.lora"] = None
    found = {
        key: {"was": value, "now": now.get(key, "not set")}
        for key, value in was.items()
        if (value not in EMPTY or key in now) and now.get(key, "not set") != value
    }
    empty = {key for key, value in was.items() if value in EMPTY and key not in now}
    for key, value in now.items():  # of a section that the run had not
        if any(key.startswith(f"{section}.") for section in empty):
            found[key] = {"was": "not set", "now": value}
    return found


def _data_here(run: RunRecord, root: Path) -> str | None:
    """The data folder that still has the run's digest, relative to ``root``; for a warm-up, its train.jsonl's."""
    for path in (root, *sorted(root.glob("outputs/runs/*"))):
        folder = path / "data" / str(run.identity.get("problem_set"))
        split = folder / "train.jsonl"
        if not split.is_file():
            continue
        if run.identity.get("data") == folder_digest(folder) or run.identity.get("train") == file_digest(split):
            return folder.relative_to(root).as_posix()
    return None


def scores(digest: str, root: Path) -> list[dict[str, Any]]:
    """All scores of a policy, from the files of cells and of nightly reports."""
    found = []
    for path in [path for pattern in SCORES for path in sorted(root.glob(pattern))]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["model_digest"] != digest:
                continue
            cells = [cell["score"] for cell in content["cells"].values()] if "cells" in content else [content]
            kept = [{key: cell[key] for key in ("cell", "accuracy", "standard_error")} for cell in cells]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # not a score's file
        found += [{"file": path.relative_to(root).as_posix(), **cell} for cell in kept]
    return found


def lines(chain: dict[str, Any]) -> Iterator[str]:
    """Lines of text for a lineage: one fact a line, with what belongs to it indented below."""
    policy = chain["policy"]
    names = f" ({', '.join(policy['names'])})" if policy["names"] else ""
    guess = ", not here; the report names this run and iteration" if policy["by_name_alone"] else ""
    yield f"policy        {policy['digest'] or 'unknown'}{names}{guess}"
    yield from _run_lines(chain, f", iteration {policy['iteration']}")
    if first := chain.get("first_policy"):
        yield f"first policy  {first['digest']}"
        if first["warmup"] is None:
            yield "  made by     no warm-up that is known here"
        else:
            yield from (f"  {line}" for line in _run_lines(first["warmup"], ""))
    for score in chain["scores"]:
        error = "" if score["standard_error"] is None else f" ± {score['standard_error']:.4f}"
        yield f"score         {score['cell']}: {score['accuracy']:.4f}{error}  {score['file']}"
    if not chain["scores"]:
        yield "score         none here"


def _run_lines(run: dict[str, Any], at: str) -> Iterator[str]:
    yield f"made by       run {run['run']['directory']}{at}{'' if run['run']['here'] else ' (not in work/ here)'}"
    for key, value in run["params"].items():
        yield f"  {key} = {json.dumps(value, ensure_ascii=False)}"
    now = run["params_now"]
    if not now:
        yield "params now    the same"
    for key, pair in now.items():
        if key == "unknown":
            yield f"params now    cannot be read: {pair}"
        else:
            yield f"params now    {key} = {json.dumps(pair['now'], ensure_ascii=False)}"
    data, code = run["data"], run["code"]
    yield f"data          {data['digest']} ({data['here'] or 'not here'})"
    changed = ", with uncommitted changes" if code["uncommitted_changes"] else ""
    yield f"code          {code['revision'] or 'unknown'}{changed}{SAME[code['same_now']]}"
    for attempt in run["attempts"]:
        yield f"attempt       {_attempt_line(attempt)}"
    if not run["attempts"]:
        yield "attempt       none is recorded"
    if tracked := run["wandb"]:
        where = tracked.get("url") or tracked["mode"]
        yield f"W&B           project {tracked['project']}, run {tracked['id']}, {where}"


def _attempt_line(attempt: dict[str, Any]) -> str:
    caller = attempt["caller"]
    flow = f"flow run {caller['flow_run_name']} {caller['flow_run_id']}" if caller["flow_run_id"] else "no flow run"
    parts = [
        f"{attempt['started']} from iteration {attempt['first_iteration']}, {flow}",
        caller["deployment"] and f"deployment {caller['deployment']}",
        attempt["dvc_stage"] and f"DVC stage {attempt['dvc_stage']}",
        f"code {attempt['code_revision'][:12]}{' and changes' if attempt['uncommitted_changes'] else ''}",
        f"process {attempt['process']} on {attempt['host']} ({attempt['cpu']})",
        attempt["page"],
    ]
    return ", ".join(part for part in parts if part)
