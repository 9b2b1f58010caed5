"""The page and the terminal's table of analyses of several policies, as checkpoints of a training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from spo_core.observe.analysis_page import estimate
from spo_core.observe.plots import curves_svg
from spo_core.observe.report import page_environment
from spo_core.observe.scores import table_console
from spo_core.system.files import write_text

CURVES = {"per_token": "Efficiency for a million tokens", "variance": "Variance of a question's gradient"}


def write_checkpoints(found: Mapping[str, Any], folder: Path) -> Path:
    """Write ``folder/index.html`` from what analysis.json holds, and return its path. Equal inputs give equal bytes."""
    curves = [Markup(_curve(found, key, title)) for key, title in CURVES.items()]
    template = page_environment().get_template("analysis_models.html")
    text = template.render(found=found, rows=checkpoint_rows(found), curves=curves, estimate=estimate)
    write_text(folder / "index.html", text.encode("utf-8", "backslashreplace").decode())
    return folder / "index.html"


def checkpoint_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each candidate at each policy, candidates together, policies in order; drift is of the policy."""
    analyses = found["analyses"]
    return [
        {
            "candidate": row["name"],
            "model": analysis["model"],
            "folder": folder,
            "efficiency": row["efficiency"],
            "value_error": row["values"] and row["values"]["error"],
            "drift": analysis["drift"],
        }
        for number in range(len(analyses[0]["candidates"]))
        for folder, analysis in zip(found["models"], analyses, strict=True)
        for row in [analysis["candidates"][number]]
    ]


def _curve(found: Mapping[str, Any], key: str, title: str) -> str:
    """One line a candidate over the policies, numbered as they were named."""
    series: dict[str, list[tuple[float, float]]] = {}
    for analysis in found["analyses"]:
        for row in analysis["candidates"]:
            points = series.setdefault(row["name"], [])
            value = row["efficiency"][key]["value"]
            points.append((len(points) + 1, float("nan") if value is None else value))
    return curves_svg(series, "policy", title)


def print_checkpoints(found: Mapping[str, Any]) -> None:
    """A line for each candidate at each policy."""
    table = Table(
        title=escape(f"{found['name']}: the candidates at {len(found['models'])} policies"),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
    )
    table.add_column("candidate", overflow="fold")
    table.add_column("policy", overflow="fold")
    for heading in ("a million\ntokens", "variance", "no\nsignal", "value\nerror", "KL a\ntoken"):
        table.add_column(heading, justify="right")
    for row in checkpoint_rows(found):
        own = row["efficiency"]
        estimates = (own["per_token"], own["variance"], own["without_signal"], row["value_error"])
        drift = estimate(row["drift"] and row["drift"]["kl_token"])
        table.add_row(escape(row["candidate"]), escape(row["model"]), *map(estimate, estimates), drift)
    table_console().print(table)
