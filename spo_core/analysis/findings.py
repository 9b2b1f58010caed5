"""The findings of an analysis: what was measured of every candidate, compared, and said in a sentence each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from spo_core.analysis.bench import Bench
from spo_core.analysis.candidates import REFERENCE, Candidate
from spo_core.analysis.efficiency import TOLD_APART, Efficiency, Estimate, Gradients, cosine, efficiency, gain
from spo_core.analysis.forwarded import cut_entropies
from spo_core.analysis.found import Found, credit_found
from spo_core.analysis.shape import Shape, shape
from spo_core.analysis.truth import Ranking, State, calibration, error, ranking
from spo_core.analysis.warmed import CriticFound
from spo_core.credit.pairs import CreditedTree
from spo_core.problems.base import ShowsMistakes
from spo_core.rollout.token_texts import token_texts


@dataclass(frozen=True, slots=True)
class Values:
    """How wrong a candidate's values are."""

    error: Estimate
    by_depth: dict[int, Estimate]
    by_position: dict[str, Estimate]
    calibration: list[tuple[float, float, int]]
    ranking: Ranking
    states: int


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of one candidate.

    ``tokens_gain`` and ``seconds_gain`` are its efficiency over that of the first candidate; None for the first itself.
    ``values``, ``found`` and ``critic`` are None where there are none to measure.
    """

    name: str
    described: str
    efficiency: Efficiency
    cosine: Estimate | None
    tokens_gain: Estimate | None
    seconds_gain: Estimate | None
    shape: Shape
    values: Values | None
    found: Found | None
    critic: CriticFound | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Measured:
    """Of one candidate: its gradients, its trees, states of known value, and how good its critic is, if it has one."""

    candidate: Candidate
    gradients: Gradients
    trees: Sequence[CreditedTree]
    states: Sequence[State]
    critic: CriticFound | None = None


def compare(bench: Bench, measured: Sequence[Measured], reference: Gradients) -> list[Row]:
    """A row a candidate; gains are over the first. ``reference`` is a sample that no candidate is part of."""
    first = measured[0]
    rows = {row.question_id: row for row in bench.rows}
    result = []
    for m in measured:
        name = m.candidate.name
        blame = None
        if isinstance(bench.problem, ShowsMistakes):
            blame = credit_found(m.trees, bench.problem, rows, lambda ids: token_texts(bench.tokenizer, ids.tolist()))
        result.append(
            Row(
                name,
                m.candidate.described,
                efficiency(m.gradients),
                None if name == REFERENCE else cosine(m.gradients, reference),
                None if m is first else gain(m.gradients, first.gradients, "tokens"),
                None if m is first else gain(m.gradients, first.gradients, "seconds"),
                shape(m.trees, cut_entropies(bench, m.trees, m.candidate.params.rollout.temperature)),
                _values(m.states) if m.states else None,
                blame,
                m.critic,
            )
        )
    return result


def _values(states: Sequence[State]) -> Values:
    depths = sorted({s.depth for s in states})
    thirds = {"first third": (0, 1 / 3), "second third": (1 / 3, 2 / 3), "last third": (2 / 3, 1.01)}
    return Values(
        error(states),
        {depth: error([s for s in states if s.depth == depth]) for depth in depths},
        {name: error([s for s in states if low <= s.position < high]) for name, (low, high) in thirds.items()},
        calibration(states),
        ranking(states),
        len(states),
    )


def recommend(rows: Sequence[Row]) -> list[str]:
    """A sentence for every candidate but the first, the strongest for a second of time first; then what to do."""
    first = rows[0]
    own = (first.efficiency.per_token, first.efficiency.per_second)
    if not all(found.value > TOLD_APART * found.error for found in own):
        return [f"The efficiency of {first.name} is not told from zero, so nothing is compared: measure more tokens."]
    gains = [(row, row.tokens_gain, row.seconds_gain) for row in rows[1:]]
    compared = [(row, t, s) for row, t, s in gains if t and s and math.isfinite(s.value)]
    compared.sort(key=lambda found: -found[2].value)
    lines = [
        f"{row.name} gives {_gain(seconds)} what {first.name} gives a second, and {_gain(tokens)} a token."
        for row, tokens, seconds in compared
    ]
    lines += [f"{row.name} trained nothing." for row in rows[1:] if all(row is not found for found, *_ in compared)]
    better = [row for row, _, seconds in compared if _told(seconds) > 0]
    if better:
        lines.append(_advice(better[0]))
    elif len(rows) > 1:
        lines.append(
            f"Nothing beats {first.name} by {TOLD_APART} standard errors a second: keep it, or measure more tokens."
        )
    return lines


def _advice(row: Row) -> str:
    """What to train with, and whether its gradient points where the reference's does."""
    if row.name == REFERENCE:
        return f"Train with what the {REFERENCE} is: {row.described}."
    if row.cosine is None or not math.isfinite(row.cosine.value):
        return f"Train with {row.name}; its cosine to the {REFERENCE} is not known: measure more tokens."
    return f"Train with {row.name}; its cosine to the {REFERENCE} is {row.cosine.value:.2f} ± {row.cosine.error:.2f}."


def _gain(gain: Estimate) -> str:
    apart = "" if _told(gain) else " (not told from 1)"
    return f"{gain.value:.2f} ± {gain.error:.2f} times{apart}"


def _told(gain: Estimate) -> int:
    """1 or -1 where a gain is above or below 1 by more than chance, else 0."""
    return (gain.value - 1 > TOLD_APART * gain.error) - (1 - gain.value > TOLD_APART * gain.error)


def as_json(found: Any) -> Any:
    """Dataclasses, and whatever holds them, as plain JSON; what is not finite is null."""
    if is_dataclass(found) and not isinstance(found, type):
        found = asdict(found)
    if isinstance(found, dict):
        return {str(key): as_json(item) for key, item in found.items()}
    if isinstance(found, list | tuple):
        return [as_json(item) for item in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found
