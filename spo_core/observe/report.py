"""The page of a training run: one file that needs no network, with what a reader must know to trust its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from spo_core.config import flatten
from spo_core.credit import Credit
from spo_core.observe.evaluation_section import section
from spo_core.observe.evaluations import Evaluations
from spo_core.observe.formatting import FILTERS, known
from spo_core.observe.plots import Point, curves_svg
from spo_core.observe.tree_view import Decode, tree_view
from spo_core.runs.directory import STEPS, step_seconds
from spo_core.system.files import write_text
from spo_core.tree import RolloutTree

MOST_TREES = 4


@dataclass(frozen=True, slots=True)
class ReportInputs:
    """Content of the page, as the stages published it; the page says that what is empty is missing."""

    title: str
    """Name of the run."""
    summary: dict[str, Any]
    """The result of ``summary.summarize``: accuracies before and after and their difference, seconds a stage."""
    evaluations: Evaluations
    """Evaluations of ``warmup``, ``final``, and ``best`` if it was evaluated."""
    iterations: list[dict[str, Any]]
    """Rows of metrics.jsonl."""
    warmup: list[dict[str, Any]]
    """Rows {"iteration": step, "warmup/loss": loss}."""
    params: dict[str, Any]
    provenance: dict[str, Any]
    trees: list[tuple[RolloutTree, Credit, str]]
    """Sampled trees, their credit and the text of their questions; the first MOST_TREES are drawn."""
    view: str = ""
    """Address of the run's page in the view, where it is served at its own port; empty: no link."""


def write_report(inputs: ReportInputs, folder: Path, decode: Decode) -> Path:
    """Write ``folder/index.html``, and return its path. ``decode`` gives the text of token ids; it is called often.

    Equal inputs give equal bytes.
    """
    page = page_environment().get_template("report.html")
    text = page.render(
        inputs=inputs,
        evaluation=section(inputs.evaluations),
        curves=[Markup(svg) for svg in curves(inputs)],
        steps=list(step_rows(inputs.iterations)),
        trees=[tree_view(*tree, decode) for tree in inputs.trees[:MOST_TREES]],
        params=flatten(inputs.params) if inputs.params else {},
        provenance=flatten(inputs.provenance) if inputs.provenance else {},
    )
    write_text(folder / "index.html", text.encode("utf-8", "backslashreplace").decode())  # lone surrogates
    return folder / "index.html"


def page_environment() -> Environment:
    """Templates of pages: every text is escaped, and a missing value is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    return environment


def step_rows(iterations: Sequence[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Tabulate the seconds of each step of an iteration: mean, smallest, largest, total, and share of all steps."""
    seconds = {step: [row[f"timing/{step}"] for row in iterations if f"timing/{step}" in row] for step in STEPS}
    total = sum(map(sum, seconds.values()))
    for step, values in seconds.items():
        if values:
            spread = {"mean": sum(values) / len(values), "least": min(values), "most": max(values)}
            yield {"name": step, **spread, "total": sum(values), "share": sum(values) / total if total else None}


OUTCOMES = {"truncated": "truncated", "no answer": "no_answer", "unparsable": "unparsable", "timed out": "timeout"}


def curves(inputs: ReportInputs) -> Iterable[str]:
    """The figures of the page as SVG; one whose metric no row has is left out."""
    rows = inputs.iterations
    tokens = [row.get("generated_tokens") for row in rows]
    seconds: list[float | None] = []
    passed = 0.0
    for row in rows:
        spent = step_seconds(row)
        passed += spent
        seconds.append(passed if spent else None)
    numbers = [row.get("iteration") for row in rows]
    params = flatten(inputs.params)
    has_reference = params.get("learn.kl.type") == "penalty"  # rows of old runs have a KL of 0 without one
    figures: list[tuple[str, str, Sequence[float | None], dict[str, str]]] = [
        ("Reward", "generated tokens", tokens, {"reward": "rollout/reward"}),
        ("Reward", "seconds of all steps", seconds, {"reward": "rollout/reward"}),
        ("Completion length (tokens)", "iteration", numbers, {"length": "rollout/completion_tokens"}),
        (
            "Share",
            "iteration",
            numbers,
            {"tokens in the mask": "credit/mask_share", "segments with advantage": "credit/segments_with_advantage"},
        ),
        ("Share of responses", "iteration", numbers, {name: f"rollout/{o}_share" for name, o in OUTCOMES.items()}),
        ("Clip fraction", "iteration", numbers, {"clip fraction": "train/clip_fraction"}),
        (
            f"KL to the reference policy ({params.get('learn.kl.estimator')})",
            "iteration",
            numbers,
            {"kl": "train/kl"} if has_reference else {},
        ),
        ("Gradient norm before clipping", "iteration", numbers, {"gradient norm": "train/grad_norm"}),
    ]
    for ylabel, xlabel, x, keys in figures:
        series = {name: _points(x, rows, key) for name, key in keys.items()}
        if any(series.values()):
            yield curves_svg(series, xlabel, ylabel)
    if inputs.warmup:
        steps = [row["iteration"] for row in inputs.warmup]
        loss = {"loss": _points(steps, inputs.warmup, "warmup/loss")}
        yield curves_svg(loss, "optimizer step of the warm-up", "Warm-up loss")


def _points(x: Sequence[float | None], rows: Sequence[dict[str, Any]], key: str) -> list[Point]:
    return [(at, row[key]) for at, row in zip(x, rows, strict=True) if at is not None and known(row.get(key))]
