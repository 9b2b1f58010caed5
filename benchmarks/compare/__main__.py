"""Compares the algorithms on the embedded problem: tokens to fixed accuracies, accuracy at the end, paired by seed.

All start from one warmed-up policy. The learning rate of each is chosen on seeds of its own; then come the compared
seeds, at equal generated tokens. Writes compare.json and two figures to benchmarks/results.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated

import typer

from benchmarks.compare.outcome import best_rates
from benchmarks.compare.runs import QUESTIONS, Algorithm, Plan, as_json, make, prepared
from benchmarks.compare.tables import costs, curves, ends
from benchmarks.machine import RESULTS, describe_machine
from spo_core.observe.scores import table_console
from spo_core.system.files import write_json, write_text

BASELINE = "GRPO"
TREE = ("rollout.branch_factors=[4, 4, 4]", "rollout.questions=16")
WHOLE = (TREE[0], "rollout.first_children=null", "rollout.questions=8")  # as many tokens an iteration
ALGORITHMS = (
    Algorithm("SPO-tree", None, TREE),
    Algorithm("SPO-tree, all children at once", None, WHOLE),
    Algorithm("SPO-chain", "spo-chain"),
    Algorithm(BASELINE, "grpo"),
    Algorithm("RLOO", "rloo"),
    Algorithm("VinePPO", "vineppo"),
)
MORE = tuple(
    Algorithm(preset, preset)
    for preset in ("dr-grpo", "dapo", "gspo", "cispo", "ppo", "restem", "dpo-positive", "dvo", "pav")
)
ACCURACIES = (0.5, 0.55, 0.6, 0.65)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is run: generated tokens of a run, learning rates tried, and seeds of the two parts."""

    budget: int
    rates: tuple[float, ...]
    sweep_seeds: tuple[int, ...]
    seeds: tuple[int, ...]


FULL = Scale(400_000, (5e-5, 1e-4, 2e-4, 4e-4), (100,), (0, 1, 2, 3, 4))
QUICK = Scale(100_000, (2e-4,), (100,), (0, 1))


def command(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer tokens and seeds, one learning rate.")] = False,
    every: Annotated[bool, typer.Option("--all", help="The other presets of the embedded problem too.")] = False,
    problem: Annotated[str | None, typer.Option(help="A preset whose questions and first policy all have.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once, one thread each.")] = os.cpu_count() or 1,
) -> None:
    """Make the runs that are missing, then print and write the comparison."""
    scale, algorithms = QUICK if quick else FULL, (*ALGORITHMS, *(MORE if every else ()))
    prepared(Plan(algorithms[0], scale.rates[0], 0, scale.budget, problem).params)
    tried = [
        Plan(algorithm, rate, seed, scale.budget, problem)
        for seed in scale.sweep_seeds
        for algorithm in algorithms
        for rate in scale.rates
        if len(scale.rates) > 1
    ]
    sweep = make(tried, "rates", jobs)
    rates = best_rates(sweep) or {algorithm.name: scale.rates[0] for algorithm in algorithms}
    plans = [Plan(a, rates[a.name], seed, scale.budget, problem) for seed in scale.seeds for a in algorithms]
    runs = make(plans, "seeds", jobs)
    name = "compare" + "_quick" * quick + "_all" * every + (f"_{problem}" if problem else "")
    write_json(
        RESULTS / f"{name}.json",
        {
            "budget": scale.budget,
            "questions": QUESTIONS,
            "jobs": jobs,
            "machine": describe_machine(1),
            "sweep": as_json(sweep),
            "runs": as_json(runs),
        },
    )
    for axis, title in (("tokens", "generated tokens"), ("seconds", "seconds of rollout, advantage, train")):
        write_text(RESULTS / f"{name}_{axis}.svg", curves(runs, axis, title))
    table_console().print(ends(runs, BASELINE), costs(runs, BASELINE, ACCURACIES), sep="\n")


if __name__ == "__main__":
    typer.run(command)
