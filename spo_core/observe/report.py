"""The page of a training run: one file that needs no network, with what a reader must know to trust its numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from spo_core.config import flatten
from spo_core.credit import Credit
from spo_core.files import write_text
from spo_core.observe.plots import Point, curves_svg
from spo_core.observe.tree_view import Decode, tree_view
from spo_core.tree import RolloutTree

MOST_TREES = 4
STEPS = ("rollout", "advantage", "train")
NOT_MEASURED = "\N{EN DASH}"
COMPARABLE = ("problem_set", "samples", "temperature", "top_p", "prompt_digest")


@dataclass(frozen=True, slots=True)
class ReportInputs:
    """All that the page shows, as the stages published it; whatever is empty is said to be missing."""

    title: str
    """Name of the run."""
    summary: dict[str, Any]
    """What ``summary.summarize`` gives: accuracy and standard error before and after, seconds a stage."""
    evaluations: dict[str, dict[str, Any]]
    """``warmup`` and ``final``: an evaluation's JSON (``evaluate.result.Evaluation``)."""
    iterations: list[dict[str, Any]]
    """Rows of metrics.jsonl."""
    warmup: list[dict[str, Any]]
    """Rows {"iteration": step, "warmup/loss": loss}."""
    params: dict[str, Any]
    provenance: dict[str, Any]
    trees: list[tuple[RolloutTree, Credit, str]]
    """Sampled trees, their credit and the text of their questions; the first MOST_TREES are drawn."""


def write_report(inputs: ReportInputs, folder: Path, decode: Decode) -> Path:
    """Write ``folder/index.html``, and return its path. ``decode`` gives the text of token ids; it is called often.

    Equal inputs give equal bytes.
    """
    differences = caveats(inputs.evaluations)
    page = _environment().get_template("report.html")
    text = page.render(
        inputs=inputs,
        verdict=verdict(inputs.summary, differences),
        context=headline_context(inputs.summary),
        cells=list(cell_rows(inputs.evaluations)),
        curves=[Markup(svg) for svg in curves(inputs)],
        steps=list(step_rows(inputs.iterations)),
        trees=[tree_view(*tree, decode) for tree in inputs.trees[:MOST_TREES]],
        params=flatten(inputs.params) if inputs.params else {},
        provenance=flatten(inputs.provenance) if inputs.provenance else {},
    )
    write_text(folder / "index.html", text.encode("utf-8", "backslashreplace").decode())  # a lone surrogate from JSON
    return folder / "index.html"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": signed, "plain": plain, "counted": counted}
    return environment


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def number(value: float | None, places: int = 3) -> str:
    """Rounded, thousands apart; a dash for what was not measured."""
    if not _known(value):
        return NOT_MEASURED
    return f"{value:,.{places}f}".replace(",", "\N{NARROW NO-BREAK SPACE}").replace("-", "\N{MINUS SIGN}")


def signed(value: float | None) -> str:
    """With its sign; what rounds to zero has no sign."""
    if not _known(value):
        return NOT_MEASURED
    text = number(abs(value))
    return text if float(f"{value:.3f}") == 0 else ("+" if value > 0 else "\N{MINUS SIGN}") + text


def counted(count: int, noun: str) -> str:
    return f"{number(count, 0)} {noun}{'' if count == 1 else 's'}"


def plain(value: Any) -> str:
    """A param as it stands in its file."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def verdict(summary: dict[str, Any], differences: Sequence[str] = ()) -> str:
    """What the two accuracies say, and no more; ``differences`` are those of ``caveats``."""
    if differences:
        return f"The evaluations do not compare, so this page claims no change: {'; '.join(differences)}."
    before, after = summary.get("accuracy_before"), summary.get("accuracy_after")
    error_before, error_after = summary.get("standard_error_before"), summary.get("standard_error_after")
    if not _known(before) or not _known(after):
        missing = [name for name, value in (("before", before), ("after", after)) if not _known(value)]
        return f"There is no evaluation {' or '.join(missing)} training, so this page claims no change."
    difference = after - before
    if not _known(error_before) or not _known(error_after):
        return f"Accuracy changed by {signed(difference)}; without standard errors that may be chance."
    error = math.hypot(error_before, error_after)
    change = f"{number(abs(difference))} ± {number(error)}"
    if abs(difference) > 2 * error:
        return f"Accuracy {'rose' if difference > 0 else 'fell'} by {change}, more than two standard errors."
    return (
        f"Accuracy changed by {signed(difference)} ± {number(error)}, no more than two standard errors: "
        "this evaluation does not tell the policies apart."
    )


def headline_context(summary: dict[str, Any]) -> str:
    """Name of the longest context, which the headline is about; empty where the summary has none."""
    contexts = summary.get("contexts") or {}
    return max(contexts, key=lambda name: contexts[name]["context_length"], default="")


def caveats(evaluations: dict[str, dict[str, Any]]) -> list[str]:
    """Why the evaluations must not be compared; empty where they may be."""
    settings = {
        name: {key: evaluation.get(key) for key in COMPARABLE}
        | {
            "contexts": {
                c: [cell.get("context_length"), cell.get("questions")] for c, cell in evaluation["cells"].items()
            }
        }
        for name, evaluation in evaluations.items()
    }
    found = []
    for key in (*COMPARABLE, "contexts"):
        values = {name: plain(chosen[key]) for name, chosen in settings.items()}
        if len(set(values.values())) > 1:
            found.append(f"{key} differs ({', '.join(f'{name}: {value}' for name, value in values.items())})")
    return found


def cell_rows(evaluations: dict[str, dict[str, Any]]) -> Iterable[tuple[str, str, dict[str, Any]]]:
    """(context, checkpoint, cell), contexts together, so that checkpoints stand below each other."""
    contexts = dict.fromkeys(name for evaluation in evaluations.values() for name in evaluation["cells"])
    for context in contexts:
        for checkpoint, evaluation in evaluations.items():
            if context in evaluation["cells"]:
                yield context, checkpoint, evaluation["cells"][context]


def step_rows(iterations: Sequence[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Seconds of each step of an iteration: mean, smallest, largest, total, and share of all steps."""
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
    seconds, passed = [], 0.0
    for row in rows:
        passed += sum(row.get(f"timing/{step}", 0.0) for step in STEPS)
        seconds.append(passed)
    numbers = [row.get("iteration") for row in rows]
    measures_kl = flatten(inputs.params).get("learn.kl_coefficient") != 0
    figures: list[tuple[str, str, Sequence[float | None], dict[str, str]]] = [
        ("Reward", "generated tokens", tokens, {"reward": "rollout/reward"}),
        ("Reward", "seconds of rollout, advantage and train", seconds, {"reward": "rollout/reward"}),
        ("Completion length (tokens)", "iteration", numbers, {"length": "rollout/completion_tokens"}),
        (
            "Share",
            "iteration",
            numbers,
            {"tokens in the mask": "credit/mask_share", "segments with advantage": "credit/segments_with_advantage"},
        ),
        ("Share of responses", "iteration", numbers, {name: f"rollout/{o}_share" for name, o in OUTCOMES.items()}),
        ("Clip fraction", "iteration", numbers, {"clip fraction": "train/clip_fraction"}),
        ("KL to the reference policy (k3)", "iteration", numbers, {"kl": "train/kl"} if measures_kl else {}),
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
    return [(at, row[key]) for at, row in zip(x, rows, strict=True) if at is not None and _known(row.get(key))]
