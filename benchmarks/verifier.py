"""How many answers a second the verifier grades, and how long a hostile one holds up the others.

Answers are graded by ``spo_core.verify`` with its workers, and by math-verify alone in one process (``parse`` both,
``verify``; its own limits as they come), the same pairs in one run. No pair occurs twice, so that no cache helps.
Hostile answers are mathematics that takes minutes or all memory. Writes benchmarks/results/verifier.json.
"""

from __future__ import annotations

import selectors
import statistics
import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.machine import RESULTS, describe_machine
from spo_core.config import VerifyParams
from spo_core.system.files import write_json
from spo_core.verify.outcome import Outcome
from spo_core.verify.pool import Task, WorkerPool
from spo_core.verify.verifier import Verifier

Pairs = list[tuple[str, str, bool]]  # (given, gold, whether they are equal)
HOSTILE = (
    "37452^{18374514}",
    "9^{9^{9^{9}}}",
    r"\sum_{k=1}^{10^{12}}\frac{1}{k^{2}}",
    r"\prod_{k=1}^{10^{9}}k",
    r"\sum_{k=1}^{10^{8}}\sin k",
    r"\int \frac{\sin x}{x^5+x+1} dx",
)


def plain_numbers(count: int, rng: np.random.Generator) -> Pairs:
    """Whole and decimal numbers as models write them; half are wrong."""
    pairs = []
    for i, value in enumerate(rng.permutation(10 * count)[:count].tolist()):
        given = (f"{value:,}", f"${value}", f"{value}.00", f"{value}.", f" {value}")[i % 5]
        wrong = i // 5 % 2
        pairs.append((given, str(value + wrong), not wrong))
    return pairs


def expressions(count: int, rng: np.random.Generator) -> Pairs:
    """What MATH asks for: fractions, surds, polynomials, intervals, tuples; half are wrong."""
    forms: tuple[Callable[[int, int, int], tuple[str, str]], ...] = (
        lambda a, b, w: (f"\\frac{{{a * b}}}{{{b * (b + 1)}}}", f"\\frac{{{a + w}}}{{{b + 1}}}"),
        lambda a, b, w: (f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b + w}}}"),
        lambda a, b, w: (f"(x-{a})(x+{b})", f"x^2+{b - a}x-{a * b + w}".replace("+-", "-")),
        lambda a, b, w: (f"\\left[{a}, \\frac{{{2 * a + b}}}{{2}}\\right)", f"[{a},{a + b / 2 + w})"),
        lambda a, b, w: (f"({a}, {b})", f"\\left( {a}, {b + w} \\right)"),
        lambda a, b, w: (f"\\frac{{{a}\\pi}}{{{b}}}", f"\\frac{{{a + w}}}{{{b}}}\\pi"),
    )
    pairs = []
    for i, n in enumerate(rng.permutation(900 * 900)[:count].tolist()):
        wrong = i // len(forms) % 2
        pairs.append((*forms[i % len(forms)](2 + n // 900, 2 + n % 900, wrong), not wrong))
    return pairs


class Watched(WorkerPool):
    """A pool that records how long each answer was under way, in seconds."""

    def __init__(self, workers: int, seconds: float) -> None:
        super().__init__(workers, seconds)
        self.begun: dict[int, float] = {}
        self.took: list[float] = []

    def _send(self, worker: int, task: Task) -> None:
        self.begun[worker] = time.perf_counter()
        super()._send(worker, task)

    def _receive(self, worker: int) -> Outcome | None:
        outcome = super()._receive(worker)
        self.took.append(time.perf_counter() - self.begun[worker])
        return outcome

    def _replace(self, worker: int, selector: selectors.BaseSelector) -> None:
        super()._replace(worker, selector)
        self.took.append(time.perf_counter() - self.begun[worker])


def rate(verifier: Verifier, pairs: Pairs) -> tuple[float, float]:
    """Answers a second, and the share of right verdicts."""
    started = time.perf_counter()
    outcomes = verifier.compare([("math", given, gold) for given, gold, _ in pairs])
    seconds = time.perf_counter() - started
    right = sum((o is Outcome.CORRECT) == equal for o, (_, _, equal) in zip(outcomes, pairs, strict=True))
    return len(pairs) / seconds, right / len(pairs)


def rate_alone(pairs: Pairs) -> tuple[float, float]:
    """``rate`` of math-verify alone, in this process."""
    from math_verify import parse, verify

    started = time.perf_counter()
    right = sum(bool(verify(parse(f"${gold}$"), parse(f"${given}$"))) == equal for given, gold, equal in pairs)
    return len(pairs) / (time.perf_counter() - started), right / len(pairs)


def command(
    repeat: Annotated[int, typer.Option(help="Runs of each, with other pairs; medians are shown.")] = 5,
    numbers: Annotated[int, typer.Option(help="Plain numbers in a run.")] = 20_000,
    pairs: Annotated[int, typer.Option(help="Expressions in a run; math-verify alone gets as many.")] = 600,
    workers: Annotated[int, typer.Option(help="Worker processes.")] = 2,
    seconds: Annotated[float, typer.Option(help="Limit for one answer, where some are hostile.")] = 1.0,
) -> None:
    """Measure rates and stalls; print a table, write the results."""
    rng = np.random.default_rng(0)
    params = VerifyParams(workers=workers, seconds=seconds)
    makers = {"plain numbers": (plain_numbers, numbers), "expressions": (expressions, pairs)}
    found: dict[str, dict[str, list[tuple[float, float]]]] = {name: {"verifier": [], "alone": []} for name in makers}
    with Verifier(params) as verifier:
        rate(verifier, expressions(20, np.random.default_rng(1)))  # workers start
        rate_alone(expressions(20, np.random.default_rng(1)))
        for _ in range(repeat):
            for name, (make, count) in makers.items():
                made = make(count, rng)
                found[name]["verifier"].append(rate(verifier, made))
                found[name]["alone"].append(rate_alone(made[:pairs]))
    stalls = measure_stalls(workers, seconds, expressions(pairs, rng))
    rates = {
        name: {
            way: {"per_second": statistics.median(r for r, _ in runs), "right": min(share for _, share in runs)}
            for way, runs in ways.items()
        }
        for name, ways in found.items()
    }
    table = Table(title=f"answers a second, and right verdicts; {workers} workers against one process")
    for column in ("", "verifier", "right", "math-verify alone", "right", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for name, ways in rates.items():
        ours, alone = ways["verifier"], ways["alone"]
        cells = (
            f"{ours['per_second']:,.0f}",
            f"{ours['right']:.1%}",
            f"{alone['per_second']:,.0f}",
            f"{alone['right']:.1%}",
        )
        table.add_row(name, *cells, f"{ours['per_second'] / alone['per_second']:.1f}")
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{stalls['hostile']} hostile answers among {stalls['answers']}, limit {seconds:g} s: {stalls['timeouts']} "
        f"timeouts; the longest any answer was under way {stalls['longest_s']:.2f} s, {stalls['seconds']:.1f} s in all "
        f"({stalls['seconds_without']:.1f} s without them)"
    )
    write_json(RESULTS / "verifier.json", {"machine": describe_machine(), "rates": rates, "stalls": stalls})


def measure_stalls(workers: int, seconds: float, pairs: Pairs) -> dict[str, float]:
    """Grade hostile answers spread over others; returns how long any answer was under way, and how long all took."""
    good: list[Task] = [("math", given, gold) for given, gold, _ in pairs]
    mixed = list(good)
    step = len(good) // len(HOSTILE)
    for number, given in enumerate(HOSTILE):
        mixed.insert(number * (step + 1), ("math", given, "x+1"))
    pool = Watched(workers, seconds)
    try:
        pool.compare(good[:20])
        started = time.perf_counter()
        pool.compare(good)
        without = time.perf_counter() - started
        pool.begun.clear()
        pool.took.clear()
        started = time.perf_counter()
        outcomes = pool.compare(mixed)
        took = time.perf_counter() - started
    finally:
        pool.close()
    return {
        "answers": len(mixed),
        "hostile": len(HOSTILE),
        "limit_s": seconds,
        "timeouts": outcomes.count(Outcome.TIMEOUT),
        "longest_s": max(pool.took),
        "seconds": took,
        "seconds_without": without,
    }


if __name__ == "__main__":
    typer.run(command)
