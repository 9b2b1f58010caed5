"""Compares two scores of one cell question by question; refuses scores that were measured in different ways."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from spo_core.errors import SPOError
from spo_core.evaluate import uncertainty
from spo_core.evaluate.lighteval.details import Sample, by_question
from spo_core.evaluate.result import CellScore, Protocol

TOLERANCE = 1e-9
LEVEL = 0.05  # largest p-value at which a and b are told apart
# questions that must differ: with 5, exchanging a and b at random gives p = 2 / 2^5 at best
FEWEST = uncertainty.FEWEST_QUESTIONS


class ComparisonError(SPOError):
    """Scores that do not compare, or completions that are not those of their score."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Scores of b and a over the same questions, and what their difference allows to say."""

    model_a: str
    model_b: str
    cell: str
    accuracy_a: float
    accuracy_b: float
    difference: float
    """Accuracy of b less that of a."""
    standard_error: float | None
    """Standard error of the paired difference, over questions; None for a single question."""
    interval: tuple[float, float] | None
    """95 % interval of the difference, by a bootstrap over questions; None for fewer than six."""
    p_value: float | None
    """McNemar's exact test; None where a question was asked more than once."""
    questions: int
    wins: int
    """Questions that b answers correctly more often than a."""
    losses: int
    ties: int
    forced_over: tuple[str, ...]
    """Differences of protocol that ``force`` overrode."""

    @property
    def told_apart(self) -> bool:
        """Whether the difference is more than chance: the interval leaves out 0, McNemar's test agrees where there is
        one, and at least FEWEST questions differ. Never for a forced comparison."""
        if self.forced_over or self.interval is None or self.wins + self.losses < FEWEST:
            return False
        low, high = self.interval
        return not low <= 0 <= high and (self.p_value is None or self.p_value <= LEVEL)

    @property
    def verdict(self) -> str:
        """A few words: which of the two is higher, that they are not told apart, or that protocols differ."""
        if self.forced_over:
            return "protocols differ"
        if self.told_apart:
            return f"b {'higher' if self.difference > 0 else 'lower'}"
        return "not told apart"


def differences(a: Protocol, b: Protocol) -> list[str]:
    """Differences of two protocols, a line each: field or package, value of a, value of b."""
    found = []
    for name in (field.name for field in fields(Protocol)):
        first, second = getattr(a, name), getattr(b, name)
        if name == "versions":
            found += [
                f"versions.{package}: {first.get(package, 'none')} and {second.get(package, 'none')}"
                for package in sorted(first.keys() | second.keys())
                if first.get(package) != second.get(package)
            ]
        elif first != second:
            short = 12 if name.endswith("_digest") else None
            found.append(f"{name}: {str(first)[:short]} and {str(second)[:short]}")
    return found


def compare(
    a: CellScore, a_samples: Sequence[Sample], b: CellScore, b_samples: Sequence[Sample], *, force: bool = False
) -> Comparison:
    """Compare b with a, paired by question, from every completion of both.

    Raises ComparisonError where the protocols differ, unless ``force``; where the questions differ; and where
    completions are not those of their score.
    """
    first, second = _rewards(a, a_samples), _rewards(b, b_samples)
    differ = differences(a.protocol, b.protocol)
    if differ and not force:
        raise ComparisonError(
            f"{_named(a)} and {_named(b)} were measured in different ways: {'; '.join(differ)}. Evaluate one like the "
            "other, or compare in spite of that with --force"
        )
    if first.keys() != second.keys():
        raise ComparisonError(
            f"{_named(a)} and {_named(b)} were not asked the same questions, so no pairs can be made: "
            f"{len(first.keys() & second.keys())} of {len(first)} and {len(second)} are in both"
        )
    ids = sorted(first)
    means_a, means_b = (uncertainty.question_means([rewards[i] for i in ids]) for rewards in (first, second))
    paired = uncertainty.paired(means_a, means_b, seed=a.seed)
    once = a.protocol.samples == b.protocol.samples == 1
    return Comparison(
        model_a=a.model,
        model_b=b.model,
        cell=a.cell if a.cell == b.cell else f"{a.cell} and {b.cell}",
        accuracy_a=a.accuracy,
        accuracy_b=b.accuracy,
        difference=paired.difference,
        standard_error=paired.standard_error,
        interval=paired.interval,
        p_value=uncertainty.mcnemar(means_a, means_b) if once else None,
        questions=len(ids),
        wins=int(np.sum(means_b > means_a)),
        losses=int(np.sum(means_b < means_a)),
        ties=int(np.sum(means_b == means_a)),
        forced_over=tuple(differ),
    )


def to_rows(comparisons: Iterable[Comparison]) -> list[tuple[str, ...]]:
    """Rows of text for comparisons, in the columns of ``COLUMNS``; differences are in percentage points."""
    return [
        (
            row.cell,
            row.model_a,
            row.model_b,
            f"{row.accuracy_a:.1%}",
            f"{row.accuracy_b:.1%}",
            _points(row.difference) + ("" if row.standard_error is None else f" ± {100 * row.standard_error:.1f}"),
            "" if row.interval is None else f"{_points(row.interval[0])} to {_points(row.interval[1])}",
            "" if row.p_value is None else f"{row.p_value:.2g}",
            f"{row.wins}, {row.losses}, {row.ties}",
            row.verdict,
        )
        for row in comparisons
    ]


COLUMNS = ("cell", "a", "b", "accuracy\nof a", "accuracy\nof b", "b − a", "95 %", "p", "won, lost,\ntied", "")


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """The table to print; its notes say what each number is, and what ``force`` overrode."""
    notes = ["Differences in points, ± standard error, paired by question; each interval holds for its row alone."]
    if any(row.p_value is not None for row in comparisons):
        notes.append("p: McNemar's exact test.")
    forced = dict.fromkeys(line for row in comparisons for line in row.forced_over)
    notes += [f"In spite of {line}." for line in forced]
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption=escape("\n".join(notes)),
        caption_justify="left",
    )
    for number, column in enumerate(COLUMNS):
        figures = 3 <= number <= 8
        table.add_column(column, justify="right" if figures else "left", no_wrap=number not in (1, 2), overflow="fold")
    for cells in to_rows(comparisons):
        table.add_row(*map(escape, cells))
    return table


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _named(score: CellScore) -> str:
    return f"{score.model} ({score.cell})"


def _rewards(score: CellScore, samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Rewards, 0 or 1, of every question's completions. Raises ComparisonError unless the score follows from them."""
    rows = {row[0].question_id: [float(sample.correct) for sample in row] for row in by_question(samples)}
    asked = f"{score.protocol.questions} questions with {score.protocol.samples} completions each"
    complete = all(len(row) == score.protocol.samples for row in rows.values())
    if not rows or len(rows) != score.protocol.questions or not complete:
        raise ComparisonError(f"{_named(score)}: its completions are not those of {asked}; evaluate it again")
    found = uncertainty.mean(uncertainty.question_means(list(rows.values())))
    if not abs(found - score.accuracy) <= TOLERANCE:
        raise ComparisonError(
            f"{_named(score)}: its completions give an accuracy of {found:.4f}, its score says {score.accuracy:.4f}; "
            "the two files are of different evaluations, evaluate it again"
        )
    return rows
