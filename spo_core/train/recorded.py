"""Recorded rollouts: the directory that a run leaves, read again as the trees of a replay.

Read are ``manifest.json`` (what the trees were made with) and, of every complete iteration, ``questions.json``,
``trees.parquet`` and, where it is there, ``rollout.json``. A replay trains on them instead of sampling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from spo_core.config import Params, digest, flatten
from spo_core.errors import DataError, RunError, first_line
from spo_core.runs.directory import COMPLETE, RunDirectory
from spo_core.system.files import file_digest, publish, read_json
from spo_core.tree import read_table

FILES = ("questions.json", "trees.parquet")
# Keys that must equal the recorded ones: they decide questions, sampling, cuts and grading.
SAMPLED = ("temperature", "top_p", "branch_factors", "first_children", "truncated", "max_completion_tokens")
GRADED = ("verify.grader", "verify.rewards", "verify.reward", "custom.verify")
SHAPE = (
    "problem_set",
    "prompts",
    "data",
    "credit.partition",
    "prover",
    *(f"rollout.{key}" for key in SAMPLED),
    *GRADED,
)
# Keys that decide which trees a run samples, beside its code.
POLICY = ("rollout", "credit", "learn", "policy", "lora", "run.seed", "custom")


@dataclass(frozen=True, slots=True)
class Recorded:
    """Recorded trees that passed their checks. ``digests`` are of FILES in iterations 1, 2, ..., when they were
    checked."""

    path: Path
    identity: dict[str, Any]
    digests: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Digest of everything a replay reads that decides the weights."""
        return digest(self.digests)

    def sampled_by(self, identity: Mapping[str, Any]) -> bool:
        """Whether a run of this identity would have sampled these trees, up to rounding; one with another loss would
        not."""
        before, now = flatten(self.identity), flatten(dict(identity))
        keys = [k for k in before.keys() | now.keys() if any(f"{k}.".startswith(f"{part}.") for part in POLICY)]
        return not {"replay", "rollouts_only"} & before.keys() and all(before.get(k) == now.get(k) for k in keys)

    def publish(self, iteration: int, folder: Path) -> dict[str, float]:
        """Put an iteration's files into ``folder``, as links where possible; its metrics but timing, {} if none.

        Raises DataError where the files are not those that were checked.
        """
        source = RunDirectory(self.path).iteration(iteration)
        if _digest(source) != self.digests[iteration - 1]:
            raise DataError(f"{source}: changed since this replay began; start the replay again")
        for name in FILES:
            publish(source / name, folder / name)
        metrics = read_json(source / "rollout.json") if (source / "rollout.json").is_file() else {}
        return {k: v for k, v in metrics.items() if not k.startswith("timing/")}


def complete_iterations(path: Path) -> int:
    """Number of the last iteration up to which all are complete in a run's directory; 0 where the first is not."""
    number = 0
    while (RunDirectory(path).iteration(number + 1) / COMPLETE).is_file():
        number += 1
    return number


def read_recorded(path: Path, params: Params, identity: Mapping[str, Any], vocabulary: int) -> Recorded:
    """Check the trees that a run of these params trains on; RunError or DataError name the file or key that is wrong.

    ``identity`` is that of the run, ``vocabulary`` the number of token ids of its policy.
    """
    manifest, complete = path / "manifest.json", complete_iterations(path)
    if not manifest.is_file() or not complete:
        missing = "manifest.json" if not manifest.is_file() else "iterations/000001/COMPLETE"
        raise RunError(
            f"{path}: no recorded rollouts there ({missing} is missing); --replay takes the directory that "
            "--rollouts-only printed, or one of work/train-*"
        )
    try:
        before = read_json(manifest)["identity"]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{manifest}: damaged; record the rollouts again") from None
    _refuse_other_shape(manifest, before, identity)
    iterations, budget = params.run.iterations, params.run.max_generated_tokens
    digests, tokens = [], 0
    for number in range(1, iterations + 1):
        if number > complete:
            raise RunError(
                f"{path}: {complete} complete iterations are recorded, run.iterations is {iterations}; "
                f"set it to {complete} or less, or record more"
            )
        folder = RunDirectory(path).iteration(number)
        if not (folder / "trees.parquet").is_file():
            raise RunError(
                f"{folder}: its trees are gone, as run.keep_rollouts has those of old iterations deleted; replay a run "
                "of run.keep_rollouts=null, or one that --rollouts-only recorded"
            )
        generated = _check_trees(folder / "trees.parquet", number, vocabulary)
        rollout = read_json(folder / "rollout.json") if (folder / "rollout.json").is_file() else {}
        tokens += int(rollout.get("rollout/generated_tokens", generated))  # trees that gave way to others count too
        digests.append(_digest(folder))
        if budget is not None and tokens >= budget:
            break  # the recorded run ends here
    return Recorded(path.resolve(), before, tuple(digests))


def _refuse_other_shape(manifest: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    was, is_ = flatten(dict(before)), flatten(dict(now))
    keys = sorted(key for key in was.keys() | is_.keys() if any(f"{key}.".startswith(f"{part}.") for part in SHAPE))
    differ = [key for key in keys if was.get(key) != is_.get(key)]
    if differ:
        shown = ", ".join(f"{k} (was {_short(was.get(k))}, is {_short(is_.get(k))})" for k in differ)
        raise RunError(f"{manifest}: the trees were made with other params or data: {shown}; replay with the same")


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else repr(value)  # a digest


def _check_trees(path: Path, iteration: int, vocabulary: int) -> int:
    """Check a file of trees and count its generated tokens; column by column, to be quick before a replay begins."""
    try:
        table = read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, first_line(error)) from None
    ids, logprobs = (table[name].combine_chunks() for name in ("token_ids", "logprobs"))
    lengths = ids.value_lengths().to_numpy(zero_copy_only=False)
    tokens, probs = (column.flatten().to_numpy(zero_copy_only=False) for column in (ids, logprobs))
    node, parent, numbers = (table[name].to_numpy() for name in ("node", "parent", "iteration"))
    if not (
        np.array_equal(lengths, logprobs.value_lengths().to_numpy(zero_copy_only=False))
        and np.isfinite(probs).all()
        and np.array_equal(node == 0, parent == -1)
        and (parent < node).all()
        and (tokens >= 0).all()
    ):
        raise _damaged(path, "its nodes are no trees")
    if not len(node) or (numbers != iteration).any():
        raise DataError(f"{path}: holds no trees of iteration {iteration}; record the rollouts again")
    if tokens.max() >= vocabulary:
        raise DataError(
            f"{path}: token id {tokens.max()} exceeds the policy's vocabulary of {vocabulary}; "
            "replay with the policy, or one of the same tokenizer, that sampled the trees"
        )
    return int(lengths[node > 0].sum())


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path}: damaged ({why}); record the rollouts again")


def _digest(folder: Path) -> str:
    try:
        return digest([file_digest(folder / name) for name in FILES])
    except OSError as error:
        raise _damaged(Path(error.filename), "missing") from None
