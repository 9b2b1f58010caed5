"""The page and the terminal's table of an analysis: which candidate gives most gradient, how right its credit is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from spo_core.config import flatten
from spo_core.observe.formatting import NOT_MEASURED
from spo_core.observe.plots import curves_svg
from spo_core.observe.report import page_environment
from spo_core.observe.scores import table_console
from spo_core.system.files import write_text

Estimated = Mapping[str, float | None] | None


def write_analysis(result: Mapping[str, Any], folder: Path) -> Path:
    """Write ``folder/index.html`` from what analysis.json holds, and return its path. Equal inputs give equal bytes."""
    template = page_environment().get_template("analysis.html")
    text = template.render(
        result=result,
        estimate=estimate,
        critic_line=critic_line,
        calibration=Markup(calibration(result)),
        provenance=flatten(result["provenance"]),
    )
    write_text(folder / "index.html", text.encode("utf-8", "backslashreplace").decode())
    return folder / "index.html"


def calibration(result: Mapping[str, Any]) -> str:
    """Draw mean truth over mean value, by bins of the value, as SVG; empty where nothing was valued."""
    series = {
        row["name"]: [(value, truth) for value, truth, _ in row["values"]["calibration"]]
        for row in result["candidates"]
        if row["values"] is not None
    }
    return curves_svg(series, "value", "True value") if series else ""


def estimate(found: Estimated, scale: float = 1.0) -> str:
    """A number and its error, to two digits of the error; a dash for what was not measured."""
    if found is None or found["value"] is None:
        return NOT_MEASURED
    value, error = found["value"] * scale, found["error"]
    if error is None:
        return f"{value:.3g}"
    error *= scale
    places = min(6, max(0, 1 - math.floor(math.log10(error)))) if error > 0 else 3
    return f"{value:.{places}f} ± {error:.{places}f}"


def critic_line(row: Mapping[str, Any]) -> str:
    """What a candidate's critic explains, and what warming it took."""
    critic = row["critic"]
    warming = critic["warming"]
    return (
        f"{row['name']}: its critic explains {estimate(critic['explained'])} of the variance of returns, after "
        f"{warming['iterations']} iterations of warm-up whose {warming['tokens']:,} tokens are not in the table."
    )


def print_analysis(result: Mapping[str, Any]) -> None:
    """A line a candidate, then the recommendations. In a narrow terminal errors stand below their numbers."""
    console = table_console()
    table = _table(result)
    if console.measure(table, options=console.options.update(width=1000)).maximum > console.width:
        table = _table(result, "\n± ")
    console.print(table)
    if (drift := result["drift"]) is not None:
        console.print(
            escape(
                f"From {result['start']}: weights {drift['distance']:.3g} apart ({drift['relative']:.1%}), "
                f"KL {estimate(drift['kl_token'])} nats a token, {estimate(drift['kl_response'])} a response."
            )
        )
    for row in result["candidates"]:
        if row["critic"] is not None:
            console.print(escape(critic_line(row)))
    for line in result["recommendations"]:
        console.print(escape(line))


def _table(result: Mapping[str, Any], before_errors: str = " ± ") -> Table:
    table = Table(
        title=escape(f"{result['model']}: efficiency |E g|² / tr Cov(g) ± standard error over questions"),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
    )
    table.add_column("candidate", overflow="fold")
    for heading in ("a million\ntokens", "times", "a second", "times", "cosine", "no\nsignal", "value\nerror"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result["candidates"]:
        own = row["efficiency"]
        estimates = (
            own["per_token"],
            row["tokens_gain"],
            own["per_second"],
            row["seconds_gain"],
            row["cosine"],
            row["values"] and row["values"]["error"],
        )
        *cells, error = (estimate(found).replace(" ± ", before_errors) for found in estimates)
        table.add_row(escape(row["name"]), *cells, f"{own['without_signal']['value']:.2f}", error)
    return table
