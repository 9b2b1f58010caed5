"""Computes what the published runs would need on 8 and on 64 GPUs; no GPU was used.

Every input stands below with its source: *measured* by this project (benchmarks/results, on a CPU), *published*,
counted by spo_core/estimate/work.py from a preset, or *assumed*. A pair is a range, lowest first, and so is every
result; no value in between is more likely. ``docs/scaling.md`` quotes what this prints.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from benchmarks.machine import RESULTS
from spo_core.config import Params, load_params
from spo_core.estimate.memory import architecture, estimate_memory
from spo_core.estimate.work import Estimate, estimate
from spo_core.system.files import read_json

Range = tuple[float, float]
GPUS = (8, 64)
NODE = 8  # GPUs of a machine, joined by NVLink

# Published: figure on wall-clock time, read off by eye to 5 %, one A100; and a third party's logs of 8 H200
# (docs/reference.md 5.3). Iterations are those of the 2K curves.
PUBLISHED = {
    "qwen1.5b-spo-tree-666": {"name": "SPO-tree", "iterations": 230, "a100_minutes": 21.0, "h200x8_minutes": 3.4},
    "qwen1.5b-grpo": {"name": "GRPO", "iterations": 440, "a100_minutes": 12.0, "h200x8_minutes": None},
}
SERVERS_TOKENS, SERVERS, RESPONSES = 34_000, 8, 512  # tokens/s over 8 vLLM servers in a GRPO iteration; third party

# Assumed
SERVER: Range = (SERVERS_TOKENS / SERVERS, 10_000.0)  # tokens/s of a full server: published, and with more at once
STREAM: Range = (50.0, 150.0)  # tokens/s of one response; published are 66, with 64 at once
PEAK = 989e12  # dense bfloat16 operations/s of an H100 or H200: NVIDIA's data sheet
UTILISATION: Range = (0.1, 0.4)  # of PEAK in the update
OPERATIONS = 8  # a parameter and token: forward 2, backward 4, forward again by gradient checkpointing 2
CPU: Range = (0.2e12, 2e12)  # operations/s of 16 CPU threads, where the probe's forward pass runs
PROBE = 4 * (100 + 16)  # tokens of a probe
REDUCE: dict[bool, Range] = {False: (100e9, 300e9), True: (10e9, 40e9)}  # bytes/s a GPU; True: between machines
DISK = 2e9  # bytes/s of a fast shared file system; the lower end is measured


@dataclass(frozen=True, slots=True)
class Measured:
    """Inputs measured by this project on two CPU cores."""

    tree_token: Range
    """Time of a token forwarded in a tree, in units of one in padded sequences."""
    handed: float
    """Bytes/s of float32 weights from the trainer through files into a serving engine."""
    graded: float
    """Mathematical expressions compared a second, by two processes."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """Seconds of one iteration, lowest and highest."""

    busy: int
    """GPUs that have a question of their own to sample."""
    rollout: Range
    update: Range
    rest: Range
    """Weights handed over twice (ranks to flow, flow to engines), the probe, grading."""

    @property
    def total(self) -> Range:
        parts = (self.rollout, self.update, self.rest)
        return sum(p[0] for p in parts), sum(p[1] for p in parts)


def read_measured(results: Path = RESULTS) -> Measured:
    trees = [r["tokens_ratio"] / r["time_ratio"] for r in read_json(results / "tree_update.json")["results"]]
    larger = read_json(results / "weight_sync.json")["results"][-1]
    seconds = larger["ways"]["vLLM server"]["median_ms"] / 1000
    verifier = read_json(results / "verifier.json")["rates"]["expressions"]["verifier"]["per_second"]
    return Measured((min(trees), max(trees)), 4 * larger["parameters"] / seconds, verifier)


def seconds(params: Params, found: Estimate, gpus: int, measured: Measured) -> Seconds:
    """Seconds of an iteration whose rollouts and update use all GPUs in turn. The lowest takes expected counts and fast
    rates, the highest upper bounds of the counts and slow rates."""
    shape = architecture(params)
    assert shape is not None
    size = estimate_memory(params, shape).parameters
    questions = params.rollout.questions
    busy = min(gpus, questions)
    share = -(-questions // busy) / questions  # share of the questions that the GPU with most of them has
    longest = (found.context_length / 2, found.context_length)

    def rollout(end: int) -> float:
        work = (found.expected, found.most)[end]
        stream, server = STREAM[1 - end], SERVER[1 - end]
        rate = min(server, stream * work.responses * share)
        return max(longest[end] / stream, work.generated_tokens * share / rate)

    def update(end: int) -> float:
        work = (found.expected, found.most)[end]
        paths = found.optimizer_steps * longest[end]  # no step is faster than one path on one GPU
        # dividing trees among ranks repeats ancestors, at worst until each segment is a sequence of its own
        tokens = max((work.forwarded_tokens, work.flat_tokens)[end] / gpus, paths)
        forward = tokens * OPERATIONS * size * measured.tree_token[end] / (PEAK * UTILISATION[1 - end])
        return forward + found.optimizer_steps * 2 * 4 * size / REDUCE[gpus > NODE][1 - end]

    def rest(end: int) -> float:
        work = (found.expected, found.most)[end]
        handed = 2 * 4 * size / (DISK, measured.handed)[end]
        return handed + 2 * size * PROBE / CPU[1 - end] + work.responses * share / measured.graded

    return Seconds(busy, (rollout(0), rollout(1)), (update(0), update(1)), (rest(0), rest(1)))


def lines(root: Path) -> list[str]:
    """A Markdown table, and what went into it."""
    measured = read_measured(root / RESULTS)
    table = [
        "| run, context | GPUs | busy in rollouts | rollouts, s | update, s | rest, s | iteration, min "
        "| iterations | hours | GPU-hours |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    compared = []
    for preset, published in PUBLISHED.items():
        params = load_params(root, preset)
        for context in (2048, 4096):
            found = estimate(params, context)
            for gpus in GPUS:
                took = seconds(params, found, gpus, measured)
                count = published["iterations"] if context == 2048 else None
                hours = (took.total[0] * count / 3600, took.total[1] * count / 3600) if count else None
                minutes = (took.total[0] / 60, took.total[1] / 60)
                cells = [
                    f"{published['name']}, {context // 1024}K",
                    str(gpus),
                    str(took.busy),
                    *map(between, (took.rollout, took.update, took.rest, minutes)),
                    str(count or "unknown"),
                    between(hours) if hours else "",
                    between((hours[0] * gpus, hours[1] * gpus)) if hours else "",
                ]
                table.append(f"| {' | '.join(cells)} |")
                if gpus == 8 and context == 2048:
                    compared.append(comparison(published, minutes))
    low, high = measured.tree_token
    inputs = [
        f"Measured on a CPU: a token forwarded in a tree takes {low:.2f} to {high:.2f} times one in a padded sequence; "
        f"weights pass through files at {measured.handed / 1e9:.2g} GB/s; {measured.graded:.0f} expressions are "
        "compared a second.",
        f"Published: {SERVERS_TOKENS:,} tokens/s over {SERVERS} vLLM servers with {RESPONSES} responses, that is "
        f"{SERVERS_TOKENS / SERVERS:,.0f} a server and {SERVERS_TOKENS / RESPONSES:.0f} a response.",
        *compared,
    ]
    return [*table, "", *(f"- {line}" for line in inputs)]


def comparison(published: dict, minutes: Range) -> str:
    text = f"{published['name']}, 2K: published {published['a100_minutes']:g} min an iteration on one A100"
    if published["h200x8_minutes"]:
        text += f", {published['h200x8_minutes']:g} on 8 H200 (third party)"
    return f"{text}; computed for 8 H200: {between(minutes)}."


def between(values: Range) -> str:
    """Both ends, with two digits at most."""
    low, high = (f"{float(f'{v:.2g}'):,g}" for v in values)
    return low if low == high else f"{low} to {high}"


def command() -> None:
    """Print the table of docs/scaling.md."""
    print("\n".join(lines(Path.cwd())))


if __name__ == "__main__":
    typer.run(command)
