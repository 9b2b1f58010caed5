"""Curves of runs as figures of plotly.js: plain JSON, which the page's script draws and colours."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from spo_core.observe.formatting import known, visible
from spo_core.runs.directory import step_seconds

Rows = Sequence[Mapping[str, Any]]
Figure = dict[str, Any]
AXES = {"iteration": "iteration", "tokens": "generated tokens", "seconds": "seconds of all steps"}
SUBJECTS = {
    "rollout": "Rollout",
    "eval": "Validation",
    "credit": "Credit",
    "train": "Update",
    "critic": "Critic",
    "sync": "Engine and trainer",
    "replay": "Replay",
    "memory": "Memory",
    "timing": "Time",
}
TOGETHER = (  # metrics of one unit that are read against each other; every other has a figure of its own
    ("rollout/truncated_share", "rollout/no_answer_share", "rollout/unparsable_share", "rollout/timeout_share"),
    ("timing/rollout", "timing/advantage", "timing/train", "timing/validate"),
    ("credit/mask_share", "credit/segments_with_advantage"),
)
ERROR = "_standard_error"
GRID = 200  # points of a mean over seeds where the runs have no x in common


def axis(rows: Rows, x: str) -> list[float | None]:
    """The place of every row on an axis: its iteration, generated tokens so far, or seconds of all steps so far."""
    if x == "iteration":
        return [row["iteration"] for row in rows]
    if x == "tokens":
        return [row.get("generated_tokens") for row in rows]
    seconds = np.cumsum([step_seconds(row) for row in rows]).tolist()
    return [passed if step_seconds(row) else None for passed, row in zip(seconds, rows, strict=True)]


def points(rows: Rows, metric: str, x: str) -> tuple[list[float], list[float]]:
    """Finite (x, y) of the rows that have a metric."""
    pairs = [
        (float(at), float(value))
        for at, row in zip(axis(rows, x), rows, strict=True)
        if known(at) and isinstance(value := row.get(metric), int | float) and known(value)
    ]
    return [at for at, _ in pairs], [value for _, value in pairs]


def metrics_of(rows: Rows) -> list[str]:
    """Names of the metrics that any row has, in the order of their first row."""
    names = dict.fromkeys(key for row in rows for key in row)
    return [name for name in names if "/" in name and points(rows, name, "iteration")[0]]


def run_figures(rows: Rows, x: str) -> dict[str, list[Figure]]:
    """All curves of one run by subject: those of SUBJECTS, then others by the first word of their metrics' names."""
    names, found = metrics_of(rows), {}
    for prefix in dict.fromkeys([*SUBJECTS, *(name.partition("/")[0] for name in names)]):
        own = [name for name in names if name.startswith(f"{prefix}/") and not name.endswith(ERROR)]
        figures = []
        while own:
            together = next((g for g in TOGETHER if own[0] in g), (own[0],))
            shown = [name for name in together if name in own]
            own = [name for name in own if name not in shown]
            curves = [_with_error(line(*points(rows, name, x), _short(name)), rows, name) for name in shown]
            figures.append(figure(curves, " · ".join(map(_short, shown)), AXES[x]))
        if figures:
            found[SUBJECTS.get(prefix, visible(prefix))] = figures
    return found


def _with_error(curve: Figure, rows: Rows, metric: str) -> Figure:
    """The curve, with bars of one standard error where the rows have it: of ``eval/<name>_accuracy`` it is
    ``eval/<name>_standard_error``."""
    errors = points(rows, metric.removesuffix("_accuracy") + ERROR, "iteration")[1]
    if metric.endswith("_accuracy") and len(errors) == len(curve["x"]):
        curve["error_y"] = {"type": "data", "array": errors, "thickness": 1, "width": 2}
    return curve


def compared_figure(groups: Sequence[tuple[str, Sequence[Rows]]], metric: str, x: str) -> Figure:
    """One metric of several runs. Runs of a group differ in their seed alone: their mean, with a band of one standard
    error of it, as far as all of them have come."""
    curves = []
    for index, (name, members) in enumerate(groups):
        if len(members) == 1:
            curves.append(line(*points(members[0], metric, x), name, index))
        else:
            curves += band([points(rows, metric, x) for rows in members], f"{name} ({len(members)} seeds)", index)
    return figure(curves, metric, AXES[x])


def band(curves: Iterable[tuple[list[float], list[float]]], name: str, index: int = 0) -> list[Figure]:
    """Mean of curves and a band of one standard error, on the x that all have, else on GRID points between the latest
    first and the earliest last, by linear interpolation."""
    given = [(x, y) for x, y in curves if x]
    if len(given) < 2:
        return [line(*own, name, index) for own in given]
    common = sorted(set(given[0][0]).intersection(*(x for x, _ in given[1:])))
    low, high = max(x[0] for x, _ in given), min(x[-1] for x, _ in given)
    if len(common) < 2:
        if high <= low:
            return [line(*own, name, index) for own in given]
        common = np.linspace(low, high, GRID).tolist()
    values = np.array([np.interp(common, x, y) for x, y in given])
    mean, error = values.mean(0), values.std(0, ddof=1) / math.sqrt(len(values))
    shade = {
        "x": [*common, *reversed(common)],
        "y": [*(mean + error).tolist(), *reversed((mean - error).tolist())],
        "fill": "toself",
        "mode": "lines",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
        "meta": {"series": index, "band": True},
    }
    return [shade, line(common, mean.tolist(), name, index)]


def line(x: list[float], y: list[float], name: str, index: int | None = None) -> Figure:
    few = len(x) <= 60
    return {
        "type": "scatter",
        "x": x,
        "y": y,
        "name": label(name),
        "mode": "lines+markers" if few else "lines",
        "marker": {"size": 4},
        "line": {"width": 1.6},
        "meta": {"series": index},
    }


def figure(curves: list[Figure], title: str, xlabel: str) -> Figure:
    """A figure of plotly.js; the page's script gives series their colours, by ``meta.series`` or their order."""
    return {
        "data": curves,
        "layout": {
            "title": {"text": label(title), "x": 0, "xanchor": "left", "font": {"size": 14}},
            "xaxis": {"title": {"text": label(xlabel)}, "zeroline": False},
            "yaxis": {"zeroline": False},
            "margin": {"l": 56, "r": 12, "t": 36, "b": 44},
            "showlegend": sum(curve.get("showlegend", True) for curve in curves) > 1,
            "legend": {"orientation": "h", "y": -0.28, "font": {"size": 11}},
            "hovermode": "x unified",
        },
    }


def label(text: str) -> str:
    """Text for a place where plotly.js would obey tags, as text."""
    return html.escape(visible(text), quote=False)


def _short(metric: str) -> str:
    return metric.partition("/")[2].replace("_", " ")
