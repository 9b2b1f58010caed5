"""Curves as inline SVG: text stays text, colours follow the page (light or dark), equal inputs give equal bytes."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, MaxNLocator

from spo_core.config import digest

Point = tuple[float, float]
SIZE = (4.6, 2.7)  # inches of 72 units

# Colour in the drawing -> CSS variable that replaces it on the page; an SVG alone keeps the colour.
INK, MUTED, RULE = "#1d2126", "#5d656e", "#dfe2e6"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#8a6d00", "#56a0d3")  # safe for colour-blind readers
_VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule"} | {c: f"series-{i}" for i, c in enumerate(SERIES, start=1)}
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (9, 3)), (0, (3, 3)))  # many points
_MARKERS = "osD^vP"  # few points, on solid lines
_FEW_POINTS = 60


def curves_svg(
    series: Mapping[str, Sequence[Point]],
    xlabel: str,
    ylabel: str,
) -> str:
    """Draw one axis with a line per series of (x, y), as an SVG that scales to its container.

    A point with a number that is not finite is left out.
    """
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": digest([series, xlabel, ylabel]),
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=SIZE, dpi=72, layout="constrained")
        axes = figure.add_subplot()
        _frame(axes, xlabel, whole=all(float(x).is_integer() for points in series.values() for x, _ in points))
        figure.suptitle(ylabel, x=0.0, ha="left", color=INK, fontsize=10.5)
        for index, (name, points) in enumerate(series.items()):
            _draw(axes, name, _finite(points), index % len(SERIES))
        if len(series) > 1:
            figure.legend(
                loc="outside lower left", ncols=3, frameon=False, labelcolor=MUTED, handlelength=2.2, borderpad=0.0
            )
        text = io.StringIO()
        FigureCanvasSVG(figure).print_svg(text, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inline(text.getvalue(), f"{ylabel} against {xlabel}")


def _finite(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if all(map(math.isfinite, point))]


def _frame(axes: Axes, xlabel: str, *, whole: bool) -> None:
    """Style the axes: horizontal grid lines, and a frame below only. ``whole``: x has no fractions."""
    axes.patch.set_visible(False)
    axes.figure.patch.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, length=0, pad=5)
    axes.set_xlabel(xlabel, color=MUTED)
    axes.margins(x=0.02, y=0.08)
    for axis, integer in ((axes.xaxis, whole), (axes.yaxis, False)):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=integer))
        axis.set_major_formatter(ShortNumbers())


def _draw(axes: Axes, name: str, points: list[Point], style: int) -> None:
    x, y = zip(*points, strict=True) if points else ((), ())
    few, colour = len(points) <= _FEW_POINTS, SERIES[style]
    look = {"marker": _MARKERS[style], "markersize": 2.8} if few else {"linestyle": _DASHES[style]}
    axes.plot(x, y, color=colour, linewidth=1.5, label=name, **look)


class ShortNumbers(Formatter):
    """Tick labels of one unit and equal decimals: 0.25 0.50, 900, 25k 50k, 0.5M 1.0M."""

    def __call__(self, value: float, position: int | None = None) -> str:
        return self.format_ticks([value])[0]

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        largest = max((abs(value) for value in values), default=0.0)
        unit, letter = (1e6, "M") if largest >= 1e6 else (1e3, "k") if largest >= 1e4 else (1.0, "")
        scaled = [value / unit for value in values]
        decimals = next((d for d in range(9) if all(abs(v - round(v, d)) < 1e-9 * max(1, abs(v)) for v in scaled)), 9)
        labels = [f"{v:.{decimals}f}{letter}" if round(v, decimals) else "0" for v in scaled]
        return [label.replace("-", "\N{MINUS SIGN}") for label in labels]


def _inline(svg: str, label: str) -> str:
    """Cut out the <svg> element: named for screen readers, sized by its container, coloured and lettered by the
    page."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)  # would style the page
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r' id="[A-Za-z2.]+_\d+"', "", svg)  # ids of groups, which nothing refers to
    svg = re.sub(r"'DejaVu Sans'(?:, [^;\"]*)?", "var(--sans, sans-serif)", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable}, {colour})")
    head, body = svg.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    assert view is not None
    return (
        f'<svg role="img" aria-label="{html.escape(label)}" {view[0]} stroke-linejoin="round" '
        f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">{body}'
    )
