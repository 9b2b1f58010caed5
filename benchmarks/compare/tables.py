"""The tables and the curves of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.table import Table

from benchmarks.compare.outcome import by_algorithm, cost_to, difference, mean_curve, quotient
from benchmarks.compare.runs import Run
from spo_core.observe.plots import curves_svg


def ends(runs: Sequence[Run], baseline: str) -> Table:
    """A row an algorithm: its learning rate, and the accuracy it ends at."""
    groups = by_algorithm(runs)
    result = Table(
        title=f"Accuracy at the end; 95 % intervals over {len(groups[baseline])} seeds", title_justify="left"
    )
    for column in ("algorithm", "learning rate", "accuracy", f"less {baseline}'s", "seconds"):
        result.add_column(column, justify="left" if column == "algorithm" else "right")
    for name, group in groups.items():
        result.add_row(
            name,
            f"{group[0].learning_rate:g}",
            f"{np.mean([run.end for run in group]):.3f}",
            "" if name == baseline else str(difference(group, groups[baseline])),
            f"{np.median([run.seconds[-1] for run in group]):.0f}",
        )
    return result


def costs(runs: Sequence[Run], baseline: str, accuracies: Sequence[float]) -> Table:
    """A row an algorithm: mean tokens to each accuracy, and the quotient to what the baseline needs."""
    groups = by_algorithm(runs)
    result = Table(title=f"Tokens to an accuracy, and over {baseline}'s", title_justify="left")
    result.add_column("algorithm")
    for accuracy in accuracies:
        result.add_column(f"{accuracy:g}", justify="right")
    for name, group in groups.items():
        result.add_row(name, *(_cost(group, groups[baseline], accuracy) for accuracy in accuracies))
    return result


def _cost(ours: Sequence[Run], theirs: Sequence[Run], accuracy: float) -> str:
    """Mean tokens and the quotient to the baseline's; or how many seeds had the accuracy."""
    costs = [cost_to(run, accuracy) for run in ours]
    reached = [cost for cost in costs if cost is not None]
    if len(reached) < len(costs):
        return f"{len(reached)} of {len(costs)} seeds"
    tokens = f"{np.mean(reached) / 1000:.0f}k"
    share = None if ours is theirs else quotient(ours, theirs, accuracy)
    return f"{tokens}, {share}" if share else tokens


def curves(runs: Sequence[Run], axis: str, title: str) -> str:
    """An SVG with the mean curve of each algorithm."""
    series = {name: mean_curve(group, axis) for name, group in by_algorithm(runs).items()}
    return curves_svg(series, title, "accuracy on fresh questions")
