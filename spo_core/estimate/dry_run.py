"""Prints what a run would do before it is started: every resolved param, and an estimate of one iteration."""

from __future__ import annotations

import json
import sys
from dataclasses import fields

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from spo_core.config import Params, VllmEngineParams, flatten
from spo_core.estimate.memory import Memory, architecture, estimate_memory
from spo_core.estimate.work import ASSUMPTIONS, Estimate, Work, estimate
from spo_core.problems import problem_set

LINE = 120  # columns where the output is no terminal
GIB = 2**30
SPLIT = "where learn.max_tokens_per_forward or micro-batches split trees"


def print_dry_run(params: Params, console: Console | None = None) -> None:
    """Print all params, estimates for each context length, and memory; no policy and no dataset is loaded. Raises
    ConfigError for an unknown problem set."""
    problem_set(params.data)
    console = console or Console(width=None if sys.stdout.isatty() else LINE, highlight=False, markup=False)
    for namespace, content in params.model_dump(mode="json").items():
        console.print(namespace, style="bold")
        for key, value in flatten(content).items():
            console.print(f"  {key}: {json.dumps(value)}", soft_wrap=True)
    stages = [(1, params.rollout.context_length)]
    stages += [(stage.from_iteration, stage.context_length) for stage in params.rollout.context_schedule]
    for first, context in stages:
        console.print(f"\nOne iteration, from iteration {first:,} on, context of {context:,} tokens", style="bold")
        console.print(_work_table(estimate(params, context)))
    console.print(f"At most: not exceeded, save for tokens forwarded {SPLIT}. Expected: {ASSUMPTIONS}.")
    shape = architecture(params)
    console.print("\nMemory of one rank", style="bold")
    if shape is None:
        console.print("unknown: policy.init has no config.json at hand and no shape")
    else:
        console.print(_memory_table(estimate_memory(params, shape)))
        console.print(f"Rough: no fragmentation, buffers or workspace. {_engine_memory(params)}", soft_wrap=True)


def _engine_memory(params: Params) -> str:
    engine = params.rollout.engine
    if not isinstance(engine, VllmEngineParams):
        return "Engine and trainer are taken to share weights."
    share = f"{engine.gpu_memory_utilization:.0%} of a GPU for weights and cache"
    if engine.servers is not None:
        return f"Each of {engine.servers} vLLM servers takes {share}, from GPU {engine.first_gpu} on."
    return f"vLLM takes another {share}{', but not during the update' if engine.sleep else ''}."


def _work_table(found: Estimate) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("at most", justify="right")
    table.add_column("expected", justify="right")
    for field in fields(Work):
        if field.name == "value_rollouts" and not found.most.value_rollouts:
            continue
        most, expected = getattr(found.most, field.name), getattr(found.expected, field.name)
        table.add_row(LABELS[field.name], f"{most:,}", f"{expected:,}")
    table.add_row("optimizer steps", f"{found.optimizer_steps:,}", f"{found.optimizer_steps:,}")
    fewest, most = found.rollouts_a_state
    if most:
        table.add_row("value rollouts a cutpoint", f"{most}", f"{fewest}" if fewest == most else f"{fewest} to {most}")
    return table


LABELS = {
    "responses": "responses",
    "segments": "segments sampled",
    "value_rollouts": "value rollouts",
    "generated_tokens": "tokens generated",
    "episodes": "episodes trained, an epoch",
    "forwarded_tokens": "tokens forwarded in training, an epoch",
    "flat_tokens": "  were each episode a sequence of its own",
}


def _memory_table(found: Memory) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("GiB", justify="right")
    optimizer = "optimizer state (CPU)" if found.optimizer_on_cpu else "optimizer state"
    trained = "" if found.trained == found.parameters else f", {found.trained:,} trained"
    for label, size in (
        (f"weights ({found.parameters:,} parameters{trained})", found.weights),
        ("gradients", found.gradients),
        (optimizer, found.optimizer),
        ("reference policy", found.reference),
        ("critic", found.critic),
        ("activations of one forward pass", found.activations),
        ("logits of one chunk", found.logits),
        ("engine's keys and values", found.engine_cache),
        ("on the device in all", found.device),
    ):
        table.add_row(label, f"{size / GIB:,.2f}")
    return table
