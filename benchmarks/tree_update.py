"""Forward and backward pass over a tree with each prefix computed once, against one padded sequence per segment.

The second is how the published code trains (docs/reference.md 6 item 10), with logits at every position as there, but
without its mask of padding and in the micro-batch size that is fastest. Same trees, same loss, same process, in turns;
medians. With a GPU: a Qwen2-1.5B configuration with random weights in bfloat16, segments of 600 tokens, FlexAttention.
Writes benchmarks/results/tree_update.json.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from benchmarks.machine import RESULTS, describe_machine
from spo_core.config import LearnParams
from spo_core.learn.loss import LossInputs, ppo_clip
from spo_core.learn.objective import WeightedTree
from spo_core.learn.splits import divide
from spo_core.learn.tree_batch import layout
from spo_core.learn.tree_forward import TreePolicy
from spo_core.system.files import write_json
from spo_core.tree import FinishReason, Node, RolloutTree

PARAMS = LearnParams(learning_rate=1e-6)
BRANCH_FACTORS = (6, 6, 6)
MICRO_BATCHES = (8, 32)  # sequences; the published Rho runs use 8


@dataclass(frozen=True, slots=True)
class Case:
    """A model and the shape of its tree, in tokens."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    prompt: int = 80
    segment: int = 30
    budget: int = 16384  # of one forward pass of ours
    rounds: int = 1  # multiplies the repeats asked for
    branches: tuple[int, ...] = BRANCH_FACTORS

    @property
    def config(self) -> dict[str, int]:
        """Keywords of the model's transformers configuration."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": 4096,
        }

    def model(self) -> PreTrainedModel:
        torch.manual_seed(0)
        if torch.cuda.is_available():
            return Qwen2ForCausalLM(Qwen2Config(**self.config)).to("cuda", torch.bfloat16).train()
        return LlamaForCausalLM(LlamaConfig(**self.config)).train()

    def tree(self) -> WeightedTree:
        """A tree with all nodes full, all sampled tokens trained, and random old log-probs and advantages."""
        rng = np.random.default_rng(0)
        nodes = [Node.prompt(rng.integers(3, self.vocabulary, self.prompt))]
        level = [0]
        for depth, factor in enumerate(self.branches):
            finish = FinishReason.STOP if depth + 1 == len(self.branches) else FinishReason.SEGMENT
            level = [parent for parent in level for _ in range(factor)]
            first = len(nodes)
            for parent in level:
                ids = rng.integers(3, self.vocabulary, self.segment)
                nodes.append(Node.sampled(parent, ids, -rng.exponential(1.0, self.segment), finish))
            level = list(range(first, len(nodes)))
        return weighted(nodes, rng)


def weighted(nodes: list[Node], rng: np.random.Generator) -> WeightedTree:
    """A tree whose every sampled token is trained, with a random advantage for each segment."""
    sizes = [len(node.token_ids) for node in nodes]
    trained = tuple(np.full(n, i > 0) for i, n in enumerate(sizes))
    advantages = tuple(np.full(n, rng.standard_normal(), np.float32) for n in sizes)
    ones = tuple(np.ones(n, np.float32) for n in sizes)
    return WeightedTree(0, RolloutTree("q", tuple(nodes)), trained, advantages, ones, ones)


CPU_CASES = (
    Case("0.4M", layers=3, hidden=96, heads=3, kv_heads=3, intermediate=288, vocabulary=64, rounds=4),
    Case("5M", layers=6, hidden=256, heads=4, kv_heads=4, intermediate=768, vocabulary=64),
)
GPU_CASES = (Case("Qwen2-1.5B", 28, 1536, 12, 2, 8960, 151936, prompt=150, segment=600, budget=16384),)


@dataclass(frozen=True, slots=True)
class Added:
    """Tokens that one way of adding the gradient forwarded, without padding, and the loss, detached."""

    tokens: int
    loss: torch.Tensor


def update_tree(policy: TreePolicy, tree: WeightedTree, budget: int) -> Added:
    """Add the gradient of the whole tree, each prefix computed once."""
    total = sum(int(mask.sum()) for mask in tree.masks)
    forwarded, loss = 0, torch.zeros((), device=policy.model.device)
    for part in divide([tree], budget)[0]:
        batch = layout([piece.segments for piece in part], policy.model.device)
        old, advantages = (
            torch.from_numpy(
                np.concatenate([np.asarray(values(part[i], n), np.float32)[part[i].masks[n]] for i, n in batch.order])
            ).to(policy.model.device)
            for values in (lambda t, n: t.tree.nodes[n].logprobs, lambda t, n: t.advantages[n])
        )
        logprobs, _ = policy(batch, 1.0)
        own = ppo_clip(LossInputs(logprobs, old, advantages, torch.arange(len(logprobs))), PARAMS).loss.sum() / total
        own.backward()
        loss += own.detach()
        forwarded += batch.forwarded_tokens
    return Added(forwarded, loss)


def update_flat(model: PreTrainedModel, tree: WeightedTree, micro_batch: int) -> Added:
    """Add the same gradient from one padded sequence per segment."""
    device, nodes = model.device, tree.tree.nodes
    total = sum(int(mask.sum()) for mask in tree.masks)
    trained = [index for index in range(1, len(nodes))]
    forwarded, whole = 0, torch.zeros((), device=device)
    for at in range(0, len(trained), micro_batch):
        rows = trained[at : at + micro_batch]
        sequences = [np.concatenate([nodes[i].token_ids for i in tree.tree.path(index)]) for index in rows]
        width = max(map(len, sequences))
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        old, advantages, mask = (torch.zeros(len(rows), width) for _ in range(3))
        for row, (index, sequence) in enumerate(zip(rows, sequences, strict=True)):
            own = slice(len(sequence) - len(nodes[index].token_ids), len(sequence))
            ids[row, : len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
            old[row, own] = torch.from_numpy(nodes[index].logprobs)
            advantages[row, own] = torch.from_numpy(tree.advantages[index])
            mask[row, own] = 1
            forwarded += len(sequence)
        ids, old, advantages, mask = (x.to(device) for x in (ids, old, advantages, mask))
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        logprobs = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0]
        loss = (
            ppo_clip(LossInputs(logprobs, old[:, 1:], advantages[:, 1:], torch.arange(len(logprobs))), PARAMS).loss
            * mask[:, 1:]
        )
        own_loss = loss.sum() / total
        own_loss.backward()
        whole += own_loss.detach()
    return Added(forwarded, whole)


def methods(case: Case) -> tuple[PreTrainedModel, dict[str, Callable[[], Added]]]:
    """The model, and the ways to add the same gradient to it, by name."""
    model, tree = case.model(), case.tree()
    plain = {f"sequences, {size} at once": partial(update_flat, model, tree, size) for size in MICRO_BATCHES}
    return model, {"tree": partial(update_tree, TreePolicy(model), tree, case.budget)} | plain


def gradient(model: PreTrainedModel, update: Callable[[], Added]) -> tuple[torch.Tensor, int]:
    """The gradient of every parameter, flattened; and the tokens forwarded."""
    model.zero_grad()
    forwarded = update().tokens
    return torch.cat([p.grad.flatten().float() for p in model.parameters()]), forwarded


def seconds(updates: dict[str, Callable[[], Added]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every update, run in turns, so that a machine that slows down slows all of them."""
    times: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(repeats):
        for name, update in updates.items():
            started = time.perf_counter()
            update()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - started)
    return times


def peak_memory(case: Case, method: str, threads: int) -> int:
    """Bytes that a method needs beyond the model's, on a GPU of its memory; call it in a process of its own."""
    torch.set_num_threads(threads)
    update = methods(case)[1][method]
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        update()
        return torch.cuda.max_memory_allocated() - before
    before = resident("VmRSS")
    update()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Bytes of this process's memory, now (VmRSS) or at its peak (VmHWM); getrusage() would tell its parent's peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def measure(case: Case, repeats: int, threads: int) -> dict:
    model, updates = methods(case)
    found = {name: gradient(model, update) for name, update in updates.items()}  # warms up, too
    rows = {}
    times = seconds(updates, repeats * case.rounds)
    for name in updates:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            memory = pool.apply(peak_memory, (case, name, threads))
        rows[name] = {
            "seconds": statistics.median(times[name]),
            "all_seconds": times[name],
            "forwarded_tokens": found[name][1],
            "peak_memory_bytes": memory,
        }
    plain = next(gradients for name, (gradients, _) in found.items() if name != "tree")
    tree_row = rows["tree"]
    flat_row = min((row for name, row in rows.items() if name != "tree"), key=lambda row: row["seconds"])
    return {
        "case": asdict(case),
        "parameters": sum(p.numel() for p in model.parameters()),
        "unique_tokens": sum(len(node.token_ids) for node in case.tree().tree.nodes),
        "methods": rows,
        "gradient_relative_error": float((plain - found["tree"][0]).norm() / plain.norm()),
        "tokens_ratio": flat_row["forwarded_tokens"] / tree_row["forwarded_tokens"],
        "time_ratio": flat_row["seconds"] / tree_row["seconds"],
        "memory_ratio": flat_row["peak_memory_bytes"] / tree_row["peak_memory_bytes"],
    }


def print_table(results: list[dict]) -> None:
    table = Table(title=f"Gradient of one tree {'-'.join(map(str, BRANCH_FACTORS))}")
    for column in ("model", "method", "tokens forwarded", "seconds", "peak MB", "times faster"):
        table.add_column(column, justify="left" if column in ("model", "method") else "right")
    for result in results:
        tree_seconds = result["methods"]["tree"]["seconds"]
        for name, row in result["methods"].items():
            faster = "" if name == "tree" else f"{row['seconds'] / tree_seconds:.2f}"
            table.add_row(
                result["case"]["name"],
                name,
                f"{row['forwarded_tokens']:,}",
                f"{row['seconds']:.3f}",
                f"{row['peak_memory_bytes'] / 1e6:,.0f}",
                faster,
            )
    Console(highlight=False).print(table)


def command(
    repeats: Annotated[int, typer.Option(help="Timed runs of each method, after one that warms up.")] = 3,
    threads: Annotated[int, typer.Option(help="CPU threads of torch.")] = 2,
) -> None:
    """Measure, print a table, write benchmarks/results/tree_update.json."""
    torch.set_num_threads(threads)
    cases = GPU_CASES if torch.cuda.is_available() else CPU_CASES
    results = [measure(case, repeats, threads) for case in cases]
    print_table(results)
    name = "tree_update_gpu" if torch.cuda.is_available() else "tree_update"
    write_json(RESULTS / f"{name}.json", {"machine": describe_machine(threads), "results": results})


if __name__ == "__main__":
    typer.run(command)
