"""Efficiency of credit estimators in the model of ``benchmarks/decisions.py``: which estimator pays, and when.

Efficiency is |E g|² / (tr Cov(g) T), with g the gradient of one question's surrogate loss at the sampling policy and T
the tokens generated for it, value rollouts included: the squared signal-to-noise ratio that a token buys. Values and
advantages are those of ``spo_core.credit``, which the tests hold the model to. Writes
benchmarks/results/credit_model.json.
"""

from __future__ import annotations

import math
import time
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.decisions import (
    Candidate,
    Setting,
    batch_advantages,
    batch_values,
    chain,
    draw,
    exact,
    gradients,
    group,
    tree,
)
from benchmarks.machine import RESULTS, describe_machine
from spo_core.analysis import efficiency as analysis
from spo_core.analysis.efficiency import Gradients
from spo_core.system.files import write_json

CANDIDATES = (
    group(8, "group_normalized"),  # the others are relative to it
    group(4, "group_normalized"),
    group(16, "group_normalized"),
    group(8, "leave_one_out"),
    tree(6, 2, 2),
    tree(2, 2, 2),
    tree(3, 3, 3),
    tree(4, 4, 4),
    tree(6, 6, 6),
    tree(2, 2, 2, 2),
    tree(3, 3, 3, 3),
    tree(4, 4, 4, 4),
    tree(3, 3, 3, 3, 3),
    tree(6, 6, 6, first=2),
    tree(3, 3, 3, 3, first=2),
    tree(4, 4, 4, 4, first=2),
    chain(2, 3),
    exact(4),
    exact(None),
)
WRONG = {8: 0.1, 16: 0.06, 32: 0.03}  # decisions -> eps, so that 37 to 43 % of responses are right
SAME = tuple(Setting(decisions=n, eps=WRONG[n], coins=m) for m, n in ((0, 8), (0, 32), (2, 16), (8, 32)))
FACTS = tuple(Setting(decisions=n, eps=WRONG[n], coins=m, facts=60) for m, n in ((0, 8), (4, 16), (16, 32)))
REPEATS = 2  # times that each question is sampled
FEWEST = 200  # questions, however many tokens their trees take
CHUNK = 1 << 24  # decisions and coins drawn at once


class Efficiency(NamedTuple):
    """Efficiency per million tokens, its standard error over questions, and the cosine of E g to the true gradient."""

    per_million: float
    error: float
    cosine: float

    def relative_to(self, other: Efficiency) -> tuple[float, float]:
        """Ratio of two efficiencies that were measured independently, and its standard error to first order."""
        ratio = self.per_million / other.per_million
        return ratio, math.hypot(self.error, ratio * other.error) / other.per_million


def efficiency(vectors: np.ndarray, tokens: np.ndarray, logits: int) -> Efficiency:
    """Efficiency from gradients [questions, repeats, width] of trees that took ``tokens``, [questions].

    The gradient of the expected reward is the same at each of the first ``logits`` numbers, and 0 at the others; its
    cosine may exceed 1 by noise.
    """
    names = tuple(map(str, range(len(vectors))))
    found = analysis.efficiency(Gradients(names, vectors, tokens, tokens, np.ones(vectors.shape[:2], bool)))
    signal = found.mean_square.value
    along = float(vectors[:, :, :logits].mean(axis=(0, 1), dtype=np.float64).sum()) / math.sqrt(logits)
    cosine = along / math.sqrt(signal) if signal > 0 else math.nan
    return Efficiency(found.per_token.value, found.per_token.error, cosine)


def measure(setting: Setting, candidate: Candidate, questions: int, rng: np.random.Generator) -> Efficiency:
    """Measure a candidate on about as many tokens as ``questions`` groups of 8 responses take, sampled twice each."""
    shape, params = candidate.shape(setting), candidate.credit(setting)
    tokens = sum(segment.stop - segment.start for segment in shape) * (1 + setting.coins)
    count = max(FEWEST, round(questions * 8 * setting.tokens / tokens))
    facts = None
    if setting.facts:
        facts = np.repeat(rng.integers(0, setting.facts, (count, setting.decisions)), REPEATS, axis=0)
    parts, taken, chunk = [], [], max(1, CHUNK // tokens)
    for start in range(0, count * REPEATS, chunk):
        stop = min(start + chunk, count * REPEATS)
        sample = draw(setting, shape, stop - start, rng, candidate.first)
        advantages = batch_advantages(sample, batch_values(sample, params), params)
        parts.append(gradients(sample, advantages, None if facts is None else facts[start:stop]))
        taken.append(sample.tokens())
    per_question = np.concatenate(taken).reshape(count, REPEATS).mean(axis=1)
    return efficiency(np.concatenate(parts).reshape(count, REPEATS, -1), per_question, setting.logits)


def command(
    questions: Annotated[
        int, typer.Option(help="Questions of a group of 8; other candidates get as many tokens.")
    ] = 20_000,
    seed: Annotated[int, typer.Option(help="Seed of all draws.")] = 0,
) -> None:
    """Measure every estimator in every setting, relative to GRPO with 8 responses."""
    started, settings = time.perf_counter(), []
    for number, setting in enumerate(SAME + FACTS):
        rows: list[dict[str, Any]] = []
        baseline: Efficiency | None = None
        for place, candidate in enumerate(CANDIDATES):
            found = measure(setting, candidate, questions, np.random.default_rng([seed, number, place]))
            baseline = baseline or found
            relative, error = found.relative_to(baseline) if place else (1.0, 0.0)
            row = {"candidate": candidate.name, "relative": relative, "relative_error": error}
            rows.append(row | {"per_million_tokens": found.per_million, "error": found.error, "cosine": found.cosine})
        settings.append(setting.model_dump() | {"candidates": rows})
    seconds = round(time.perf_counter() - started, 1)
    report = {"machine": describe_machine(1), "questions": questions, "seed": seed, "seconds": seconds}
    report["settings"] = settings
    write_json(RESULTS / "credit_model.json", report)
    console = Console(highlight=False, width=110)
    for title, (header, *cells) in tables(report).items():
        table = Table(title=f"Efficiency per token, relative to {CANDIDATES[0].name}: {title}")
        for column in header:
            table.add_column(column.replace(", ", "\n"), justify="right" if column else "left")
        for line in cells:
            table.add_row(*line)
        console.print(table)
    console.print(f"{seconds:.0f} s")


def with_error(value: float, error: float) -> str:
    """Write both to the first digit of the error, to two places at least; without an error the value alone."""
    places = max(2, -math.floor(math.log10(error))) if error else 0
    return f"{value:.{places}f} ± {error:.{places}f}" if error else f"{value:g}"


def tables(report: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Cells of both tables, by title; the first row is the header. The cosine is that of the last setting."""
    found = {}
    for title, shared in (("all questions ask for the same decisions", False), ("questions share facts", True)):
        settings = [s for s in report["settings"] if bool(s["facts"]) == shared]
        header = ["", *(f"m = {s['coins']}, N = {s['decisions']}" for s in settings), "cosine"]
        rows = [header]
        for rows_of_candidate in zip(*(s["candidates"] for s in settings), strict=True):
            cells = [with_error(row["relative"], row["relative_error"]) for row in rows_of_candidate]
            rows.append([rows_of_candidate[0]["candidate"], *cells, f"{rows_of_candidate[-1]['cosine']:.2f}"])
        found[title] = rows
    return found


def lines(report: dict[str, Any]) -> list[str]:
    """Both tables as lines of Markdown, for docs/benchmarks.md."""
    found: list[str] = []
    for title, (header, *cells) in tables(report).items():
        found += [f"{title[0].upper()}{title[1:]}:", "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        found += [*(f"| {' | '.join(line)} |" for line in cells), ""]
    return found[:-1]


if __name__ == "__main__":
    typer.run(command)
