"""The table of an evaluation on a terminal, beside the published figures where there are some."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spo_core.evaluate.comparison import Comparison, comparison_table
from spo_core.evaluate.published_scores import beside
from spo_core.evaluate.result import CellScore

LINE = 120  # columns where the output is no terminal


def print_scores(scores: Sequence[CellScore]) -> None:
    """Print a line for each cell, and a second table of the cells with published figures."""
    console = table_console()
    console.print(score_table(scores))
    rows = [(score, row) for score in scores for row in beside(score)]
    if not rows:
        return
    table = Table(title="Beside the published figures", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("cell", "published model"):
        table.add_column(heading, overflow="fold")
    for heading in ("published", "here", "difference", "in standard errors"):
        table.add_column(heading, justify="right")
    for score, row in rows:
        table.add_row(
            score.cell,
            row.model,
            with_error(row.published, row.published_error),
            with_error(row.ours, row.ours_error),
            "" if row.not_comparable else f"{row.difference:+.3f}",
            "" if row.not_comparable or row.standard_errors is None else f"{row.standard_errors:+.1f}",
        )
    console.print(table)
    reasons: dict[tuple[str, str], list[str]] = {}
    for score, row in rows:
        if row.not_comparable:
            reasons.setdefault((score.cell, "; ".join(row.not_comparable)), []).append(row.model)
    for (cell, why), models in reasons.items():
        console.print(escape(f"{cell} does not compare with {', '.join(models)}: {why}."))
    for name, note in dict.fromkeys((score.protocol.problem_set, row.note) for score, row in rows if row.note):
        console.print(escape(f"{name}: {note}"))


def score_table(scores: Sequence[CellScore]) -> Table:
    table = Table(
        title=escape(f"{scores[0].model}: pass@1 ± standard error over questions"),
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("cell", no_wrap=True)
    samples = scores[0].protocol.samples
    for heading in ("tokens", "pass@1", "95 % over samples", f"majority@{samples}", "truncated", "by lighteval"):
        table.add_column(heading, justify="right")
    for score in scores:
        table.add_row(
            score.cell,
            f"{score.protocol.context_length:,}",
            with_error(score.accuracy, score.standard_error),
            "" if score.interval is None else f"{score.interval[0]:.3f} – {score.interval[1]:.3f}",
            f"{score.majority:.3f}",
            f"{score.truncated:.3f}",
            "" if score.cross_check is None else f"{score.cross_check.accuracy:.3f}",
        )
    return table


def with_error(value: float, error: float | None) -> str:
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def print_comparisons(comparisons: Sequence[Comparison]) -> None:
    """Print a line for each compared cell."""
    table_console().print(comparison_table(comparisons))


def table_console() -> Console:
    """A console as wide as the terminal, or LINE columns where there is none."""
    return Console(width=None if sys.stdout.isatty() else LINE, highlight=False)
