"""Puts published scores beside one of ours, each with the reasons why the two do not compare."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from importlib import resources

from pydantic import BaseModel, ConfigDict

from spo_core.evaluate.result import CellScore

LIGHTEVAL = "lighteval extractive match"
MOST_TIMEOUTS = 0.01  # share of our completions; they count as not correct


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """A published score and ours, in one problem set and context length; scores are between 0 and 1."""

    model: str
    published: float
    published_error: float | None
    """Standard error; None where none was published."""
    ours: float
    """Our completions' score by the published grader: lighteval's metric, else our accuracy."""
    ours_error: float | None
    difference: float
    """Our score less the published one."""
    standard_errors: float | None
    """The difference divided by its standard error: of both scores as if independent, or of ours alone where theirs is
    unknown; None where ours is unknown or the error is 0."""
    not_comparable: tuple[str, ...]
    """Reasons why the difference is not one of models alone; empty where none is on record."""
    note: str
    """Remark on all published scores of this problem set."""
    hub: str | None
    """The published model's id on the Hugging Face hub, where one is stated."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Model(_Record):
    model: str
    hub: str | None
    prompt_hash: str | None
    """lighteval's hash of all prompts; None where it is not on record."""
    scores: dict[str, tuple[float, float | None]]
    """Score and standard error by context length, the most tokens of a completion."""


class _Table(_Record):
    problem_set: str
    grader: str
    note: str
    questions: int
    samples: int
    temperature: float
    top_p: float
    models: list[_Model]


class _Published(_Record):
    source: str
    tables: list[_Table]


@cache
def _published() -> _Published:
    return _Published.model_validate_json(resources.files(__package__).joinpath("published.json").read_bytes())


def source() -> str:
    """Citation of the published scores."""
    return _published().source


def beside(score: CellScore) -> list[PublishedRow]:
    """Published rows for our score; empty where none was published for its problem set and context length."""
    length = str(score.protocol.context_length)
    return [
        _row(score, table, model, *model.scores[length])
        for table in _published().tables
        if table.problem_set == score.protocol.problem_set
        for model in table.models
        if length in model.scores
    ]


def _row(score: CellScore, table: _Table, model: _Model, published: float, error: float | None) -> PublishedRow:
    by_lighteval = score.cross_check if table.grader == LIGHTEVAL else None
    graded = score if by_lighteval is None else by_lighteval
    difference = graded.accuracy - published
    spread = None if graded.standard_error is None else math.hypot(graded.standard_error, error or 0.0)
    return PublishedRow(
        model=model.model,
        published=published,
        published_error=error,
        ours=graded.accuracy,
        ours_error=graded.standard_error,
        difference=difference,
        standard_errors=difference / spread if spread else None,
        not_comparable=tuple(_reasons(score, table, model)),
        note=table.note,
        hub=model.hub,
    )


def _reasons(score: CellScore, table: _Table, model: _Model) -> list[str]:
    ours = score.protocol
    reasons = []
    if model.prompt_hash is not None and score.lighteval_prompt_hash != model.prompt_hash:
        reasons.append(f"other prompts: ours hash to {score.lighteval_prompt_hash}, theirs to {model.prompt_hash}")
    for name, found, theirs in (
        ("questions", ours.questions, table.questions),
        ("samples", ours.samples, table.samples),
        ("temperature", ours.temperature, table.temperature),
        ("top_p", ours.top_p, table.top_p),
    ):
        if found != theirs:
            reasons.append(f"{name}: {found} here, {theirs} there")
    if table.grader == LIGHTEVAL:
        if score.cross_check is None:
            reasons.append(f"no verdicts of lighteval's metric, so ours is by grader {ours.grader}")
        elif score.cross_check.timeouts > MOST_TIMEOUTS * ours.questions * ours.samples:
            reasons.append(f"lighteval's metric did not finish with {score.cross_check.timeouts} of our completions")
    elif ours.grader != table.grader:
        reasons.append(f"grader: {ours.grader} here, {table.grader} there")
    return reasons
