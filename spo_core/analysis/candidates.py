"""Candidates: the ways of sampling and crediting that are compared, all at one policy and over the same questions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from spo_core.config import SEQUENCE_LOSSES, Critic, MonteCarlo, Params, digest, flatten, load_params
from spo_core.config.document import read_document
from spo_core.config.learn import PPOClip
from spo_core.errors import ConfigError
from spo_core.rollout.seeds import derive_seed

DEFAULT = "default"  # names the params without a preset
REFERENCE = "reference"
GROUP = 8
REPEATS = 2  # times that a question is sampled
FEWEST = 3  # questions that an error needs
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # of a folder
SAMPLED_VALUES = ("monte_carlo", "adaptive_monte_carlo")  # those that have rollouts sampled
CRITIC = ("betas", "epsilon", "weight_decay", "max_grad_norm")  # of learn: what a critic is trained with
# what decides the question, how the policy is sampled and judged, and how fast: what differs there does not compare
SHARED = (
    "data",
    "verify",
    "rollout.engine",
    "rollout.temperature",
    "rollout.top_p",
    "rollout.context_length",
    "rollout.max_completion_tokens",
    "rollout.truncated",
    "rollout.max_concurrency",
    "learn.dtype",
    "learn.attention",
    "learn.gradient_checkpointing",
    "learn.max_tokens_per_forward",
    "run.seed",
    "run.device",
    "run.threads",
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A name and complete params. Of ``params.learn`` only the loss and what computes its gradient count. ``preset`` is
    the one its params are read with. ``prover`` and ``reference`` are digests of the policies that sample its value
    rollouts and that its loss compares with, where there are such beside the analysed one."""

    name: str
    params: Params
    preset: str | None = None
    prover: str | None = None
    reference: str | None = None

    @property
    def prover_name(self) -> str | None:
        """What names the policy that samples its value rollouts; None where the analysed policy does."""
        value = self.params.credit.value
        return value.prover if isinstance(value, MonteCarlo) else None

    @property
    def needs_reference(self) -> bool:
        """Whether its loss compares with a reference policy."""
        return self.params.learn.loss.type in SEQUENCE_LOSSES

    def warming_questions(self, rows: int) -> int:
        """Questions of ``rows`` that are kept for warming its critic, half of them at most; none without a critic."""
        value = self.params.credit.value
        if not isinstance(value, Critic):
            return 0
        return min(rows // 2, value.warmup_iterations * self.params.rollout.questions)

    @property
    def batch_questions(self) -> int:
        """Questions of a batch, which has as many trees as an iteration: each question is sampled REPEATS times."""
        return max(1, self.params.rollout.questions // REPEATS)

    @property
    def described(self) -> str:
        """One line of what decides its credit."""
        rollout, credit = self.params.rollout, self.params.credit
        size = "-".join(map(str, rollout.branch_factors))
        if rollout.first_children is not None:
            size += f", {rollout.first_children} first"
        parts = [credit.partition, credit.value, credit.advantage, credit.mask]
        loss = self.params.learn.loss.type
        own = f", {loss}" if loss != "ppo_clip" else ""
        return f"{size}; " + ", ".join(" ".join(map(str, part.model_dump().values())) for part in parts) + own


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    preset: str | None = None
    set: list[str] = []


_Grid = Annotated[dict[str, _Row], Field(min_length=1)]


def read_candidates(
    root: Path, presets: Sequence[str], grid: Path | None = None, overrides: Sequence[str] = ()
) -> list[Candidate]:
    """Candidates named by presets, ``default`` being the params without one, then those of a grid.

    A grid is a YAML mapping from names to ``preset`` and ``set``, a list of ``namespace.key=value``; ``overrides`` hold
    for all. Raises ConfigError for a grid of another form, for a name given twice or that names no folder, and where
    candidates differ in what they must share (SHARED), or take several problem sets.
    """
    rows = {name: _Row(preset=None if name == DEFAULT else name) for name in presets}
    if len(rows) < len(presets):
        raise ConfigError(f"candidates {' '.join(presets)}: a name is given twice")
    added = _read_grid(grid) if grid is not None else {}
    for name in [REFERENCE, *rows]:
        if name in added:
            raise ConfigError(f"{grid}: {name} is taken; choose another name")
    if REFERENCE in rows:
        raise ConfigError(f"preset {REFERENCE}: the name is taken; give the preset another one in a --grid")
    rows |= added
    if not rows:
        raise ConfigError("no candidate: name presets, or give --grid")
    found = []
    for name, row in rows.items():
        if not NAME.fullmatch(name):
            raise ConfigError(f"candidate {name!r} names a folder: letters, digits, dot, dash and underscore only")
        found.append(Candidate(name, load_params(root, row.preset, (*overrides, *row.set)), row.preset))
    for candidate in found:
        if candidate.params.data.mixture:
            raise ConfigError(
                f"{candidate.name}: data.mixture: an analysis takes one problem set at a time; choose one of its sets"
            )
    first = _shared(found[0].params)
    for candidate in found[1:]:
        own = _shared(candidate.params)
        differ = sorted(key for key in first.keys() | own.keys() if first.get(key) != own.get(key))
        if differ:
            key = differ[0]
            raise ConfigError(
                f"{candidate.name} and {found[0].name} differ in {key} ({own.get(key)!r}, {first.get(key)!r}), so "
                f"their gradients do not compare; give all the same with --set {key}=..."
            )
    return found


def reference_of(candidate: Candidate) -> Candidate:
    """The plain estimator that all are compared with: whole responses, leave one out, no mask, in groups of GROUP."""
    params = candidate.params
    plain = {"partition": {"type": "whole"}, "value": {"type": "none"}, "advantage": {"type": "leave_one_out"}}
    credit = type(params.credit).model_validate(plain | {"mask": {"type": "all"}})
    rollout = params.rollout.model_copy(update={"branch_factors": (GROUP,), "first_children": None})
    learn = params.learn.model_copy(update={"loss": PPOClip(type="ppo_clip")})
    return Candidate(REFERENCE, params.model_copy(update={"credit": credit, "rollout": rollout, "learn": learn}))


def identity(candidate: Candidate) -> dict[str, Any]:
    """All of a candidate that decides what is measured; counts only the learn params that its gradient depends on."""
    chosen = candidate.params.model_dump(mode="json", include={"rollout", "credit", "learn"})
    counts: tuple[str, ...] = ("loss", "dtype", "zero_advantage", "clip_low", "clip_high")
    if candidate.params.credit.value.type == "critic":
        counts += CRITIC
    learn = {key: chosen["learn"][key] for key in counts}
    return {**chosen, "learn": learn, "shared": _shared(candidate.params), **_policies(candidate)}


def _policies(candidate: Candidate) -> dict[str, str]:
    own = {"prover": candidate.prover, "reference": candidate.reference}
    return {name: found for name, found in own.items() if found is not None}


def warming(candidate: Candidate) -> dict[str, Any]:
    """All that decides a candidate's warmed critic: candidates that agree here have one critic."""
    learn = candidate.params.learn.model_dump(mode="json", include={*CRITIC})
    critic = candidate.params.credit.value.model_dump(mode="json")
    return {"critic": critic, "learn": learn, "trees": sampling(candidate)}


def sampling(candidate: Candidate) -> dict[str, Any]:
    """What decides a candidate's trees beside what all share: candidates that agree here credit the same trees, so that
    their difference is that of their credit alone. The reference has trees of its own."""
    rollout, credit = candidate.params.rollout, candidate.params.credit
    return {
        "questions": rollout.questions,
        "branch_factors": rollout.branch_factors,
        "first_children": rollout.first_children,
        "partition": credit.partition.model_dump(mode="json"),
        "value": credit.value.model_dump(mode="json") if credit.value.type in SAMPLED_VALUES else None,
        **({"prover": candidate.prover} if candidate.prover else {}),
        "reference": candidate.name == REFERENCE,
    }


def own_seed(candidate: Candidate) -> int:
    """Seed of a candidate's samples."""
    return derive_seed(candidate.params.run.seed, "analysis", digest(sampling(candidate)))


def _shared(params: Params) -> dict[str, Any]:
    every = flatten(params.model_dump(mode="json"))
    return {key: value for key, value in every.items() if any(f"{key}.".startswith(f"{part}.") for part in SHARED)}


def _read_grid(path: Path) -> dict[str, _Row]:
    try:
        return TypeAdapter(_Grid).validate_python(read_document(path).content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{path}: {where or 'it'}: {first['msg']}; a grid maps names to preset and set (namespace.key=value)"
        ) from None
