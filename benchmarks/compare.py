"""SPO-tree, SPO-chain and GRPO on the embedded problem set at one budget of generated tokens, three seeds each.

All start from the same warmed-up policy and share optimizer, learning rate and optimizer steps an iteration. Curves
show the accuracy of fresh training questions at the training temperature; the table adds the validation split.
Writes compare.json, compare_generated_tokens.svg and compare_seconds.svg to benchmarks/results.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from flows.local_server import local_server
from spo_core.observe.plots import curves_svg
from spo_core.runs.directory import read_rows
from spo_core.system.files import write_json, write_text
from spo_core.system.processes import die_with_parent
from tasks.records import RunSpec

ALGORITHMS = {"SPO-tree": None, "SPO-chain": "spo-chain", "GRPO": "grpo"}
RESULTS = Path("benchmarks/results")
STEPS = ("timing/rollout", "timing/advantage", "timing/train")
Curve = list[tuple[float, float]]


def run(label: str, preset: str | None, seed: int, budget: int, environment: dict[str, str]) -> dict:
    """Make a training run, or reuse it; returns its curve and figures."""
    name = f"compare-{label.lower()}-{seed}"
    overrides = [f"run.seed={seed}", f"run.max_generated_tokens={budget}", "run.iterations=10000"]
    options = [*(["--preset", preset] if preset else []), *(f"--set={o}" for o in overrides), "--name", name]
    for stage in ("prepare", "warmup", "train"):
        command = [sys.executable, "-m", f"flows.{stage}", *options]
        subprocess.run(command, check=True, env=environment, preexec_fn=die_with_parent)
    spec = RunSpec.here(preset, overrides, name)
    rows = read_rows(spec.paths.training / "metrics.jsonl")
    return {
        "algorithm": label,
        "seed": seed,
        "validation_accuracy": rows[-1]["eval/validation_accuracy"],
        "validation_standard_error": rows[-1].get("eval/validation_standard_error"),
        "generated_tokens": [row["generated_tokens"] for row in rows],
        "seconds": np.cumsum([sum(row[step] for step in STEPS) for row in rows]).round(3).tolist(),
        "accuracy": [row["rollout/reward"] for row in rows],
        "trained_tokens": sum(row["train/trained_tokens"] for row in rows),
        "forwarded_tokens": sum(row["train/forwarded_tokens"] for row in rows),
    }


def mean_and_band(runs: list[dict], axis: str) -> tuple[Curve, list[tuple[float, float, float]]]:
    """Mean over seeds, and lowest and highest, on a common grid of ``axis``; smoothed over 5 iterations."""
    grid = np.linspace(max(r[axis][0] for r in runs), min(r[axis][-1] for r in runs), 40)
    smooth = [np.convolve(np.pad(r["accuracy"], 2, mode="edge"), np.ones(5) / 5, mode="valid") for r in runs]
    curves = np.array([np.interp(grid, r[axis], s) for r, s in zip(runs, smooth, strict=True)])
    mean = list(zip(grid.tolist(), curves.mean(0).tolist(), strict=True))
    return mean, list(zip(grid.tolist(), curves.min(0).tolist(), curves.max(0).tolist(), strict=True))


def figures(runs: list[dict]) -> dict[str, str]:
    by_algorithm = {label: [r for r in runs if r["algorithm"] == label] for label in ALGORITHMS}
    drawn = {}
    for axis, title in (("generated_tokens", "generated tokens"), ("seconds", "seconds of rollout, advantage, train")):
        both = {label: mean_and_band(group, axis) for label, group in by_algorithm.items()}
        series, bands = {k: v[0] for k, v in both.items()}, {k: v[1] for k, v in both.items()}
        drawn[axis] = curves_svg(series, title, "accuracy on fresh questions", bands, size=(7, 3.6))
    return drawn


def table(runs: list[dict]) -> Table:
    result = Table()
    for column in (
        "algorithm",
        "validation accuracy",
        "lowest – highest seed",
        "seconds",
        "tokens forwarded in training",
    ):
        result.add_column(column, justify="left" if column == "algorithm" else "right")
    for label in ALGORITHMS:
        group = [r for r in runs if r["algorithm"] == label]
        accuracy = [r["validation_accuracy"] for r in group]
        result.add_row(
            label,
            f"{np.mean(accuracy):.3f}",
            f"{min(accuracy):.3f} – {max(accuracy):.3f}",
            f"{np.median([r['seconds'][-1] for r in group]):.0f}",
            f"{np.mean([r['forwarded_tokens'] for r in group]):,.0f}",
        )
    return result


def command(
    budget: Annotated[int, typer.Option(help="Generated tokens of one run.")] = 200_000,
    seeds: Annotated[int, typer.Option(help="Runs of each algorithm.")] = 3,
) -> None:
    """Compare the three algorithms; finished runs are reused."""
    with local_server(Path.cwd()) as environment:
        runs = [
            run(label, preset, seed, budget, environment)
            for seed in range(seeds)
            for label, preset in ALGORITHMS.items()
        ]
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    write_json(RESULTS / "compare.json", {"budget": budget, "machine": machine, "runs": runs})
    for axis, svg in figures(runs).items():
        write_text(RESULTS / f"compare_{axis}.svg", svg)
    Console(highlight=False).print(table(runs))


if __name__ == "__main__":
    typer.run(command)
