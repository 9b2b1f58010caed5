"""Part 2: an update of a Qwen2-1.5B with random weights on a published tree, against one padded row a segment.

The tree's update is the trainer's: bfloat16, float32 master weights, AdamW. The rows' has the same optimizer.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.gpu.setting import Result, Setting, peak_operations, table
from benchmarks.tree_update import Case, update_flat
from spo_core.config import LearnParams
from spo_core.credit import Credit
from spo_core.learn.backend import TorchBackend
from spo_core.learn.objective import WeightedTree
from spo_core.learn.splits import divide
from spo_core.learn.trainer import Trainer
from spo_core.learn.tree_batch import layout
from spo_core.tree import Node, RolloutTree

QWEN = Case("Qwen2-1.5B, M = 600", 28, 1536, 12, 2, 8960, 151936, prompt=150, segment=600, budget=8192)
CASES = (QWEN, replace(QWEN, name="Qwen2-1.5B, M = 150", segment=150))
SMALL = (Case("2 layers, M = 3", 2, 32, 4, 2, 48, 60, prompt=5, segment=3, budget=200, branches=(2, 2, 2)),)
RATE = 1e-6
ROWS = 4  # rows in one forward pass; their logits alone take 2.4 GB in float32
REPEATS = 3


@dataclass(frozen=True, slots=True)
class Work:
    """Work of one update: tokens forwarded without padding, the sum over them of the keys each attends to, and
    positions projected onto the vocabulary."""

    tokens: int
    keys: int
    projected: int

    def operations(self, case: Case) -> float:
        """Operations of forward and backward pass: 6 for each token and weight of a matrix, 12 for each token, key and
        hidden dimension."""
        keys = case.kv_heads * (case.hidden // case.heads)
        layer = 2 * case.hidden**2 + 2 * case.hidden * keys + 3 * case.hidden * case.intermediate
        head = case.hidden * case.vocabulary
        return 6.0 * (case.layers * layer * self.tokens + head * self.projected) + (
            12.0 * case.layers * case.hidden * self.keys
        )


def work_of_tree(tree: WeightedTree, budget: int) -> Work:
    batches = [layout([piece.segments for piece in part]) for part in divide([tree], budget)[0]]
    return Work(
        sum(batch.forwarded_tokens for batch in batches),
        sum(int((batch.position_ids + 1).sum()) for batch in batches),
        sum(len(batch.sources) for batch in batches),
    )


def work_of_rows(tree: WeightedTree) -> Work:
    nodes = tree.tree.nodes
    lengths = [sum(len(nodes[i].token_ids) for i in tree.tree.path(n)) for n in range(1, len(nodes))]
    return Work(sum(lengths), sum(n * (n + 1) // 2 for n in lengths), sum(lengths))


def run(setting: Setting) -> Result:
    """Measure both lengths of segments."""
    peak, source = peak_operations(setting)
    shown = table(
        f"2. Update of one tree (peak: {peak / 1e12:,.1f} TFLOP/s, {source})",
        "case, way",
        "tokens",
        "seconds",
        "tokens/s",
        "of peak",
        "peak GiB",
        "first run, s",
        "times faster",
    )
    content: dict[str, Any] = {"peak": peak, "peak_source": source, "cases": []}
    for case in SMALL if setting.small else CASES:
        rows = {}
        ways, works, forward = prepared(setting, case)
        for way, update in ways.items():
            rows[way] = measured(setting, update) | {"tokens": works[way].tokens}
            if "seconds" in rows[way]:
                rows[way]["share_of_peak"] = works[way].operations(case) / rows[way]["seconds"] / peak
        if "seconds" in rows["tree"]:
            rows["tree"]["first_seconds"] += forward
        del ways, update
        gc.collect()
        content["cases"].append({"name": case.name, "ways": rows})
        for way, row in rows.items():
            shown.add_row(f"{case.name}, {way}", *cells(row, rows))
    return Result(shown, content)


def prepared(setting: Setting, case: Case) -> tuple[dict[str, Callable[[], object]], dict[str, Work], float]:
    """For one policy: an update in each way, the work of each, and the seconds of a first forward pass over the tree,
    which compiles."""
    torch.manual_seed(0)
    with torch.device(setting.device):
        model = Qwen2ForCausalLM(Qwen2Config(**case.config)).eval()
    params = LearnParams(
        learning_rate=RATE,
        optimizer_steps=1,
        dtype="bfloat16",
        max_tokens_per_forward=case.budget,
        report_entropy=False,
    )
    backend = TorchBackend(model, None, params)
    trainer = Trainer(backend, params, temperature=1.0, seed=0)
    trees: list[WeightedTree] = []
    forward = setting.seconds(lambda: trees.append(sampled(backend, case.tree(), case.budget)))
    (tree,) = trees
    few = replace(case, branches=tuple(1 for _ in case.branches)).tree()  # rows of all lengths
    credit = Credit(np.zeros(len(tree.masks)), tree.advantages, tree.masks)
    warm: list[bool] = []

    def rows() -> None:
        update_flat(backend.working, tree if warm else few, ROWS)
        warm.append(True)
        backend.step(RATE)

    ways: dict[str, Callable[[], object]] = {
        "tree": partial(trainer.train_iteration, [(tree.tree, credit)], iteration=1),
        "rows": rows,
    }
    return ways, {"tree": work_of_tree(tree, case.budget), "rows": work_of_rows(tree)}, forward


def sampled(backend: TorchBackend, tree: WeightedTree, budget: int) -> WeightedTree:
    """The same tree with the policy's own log-probs as sampling log-probs."""
    nodes = list(tree.tree.nodes)
    for part in divide([tree], budget)[0]:
        batch = layout([piece.segments for piece in part], backend.device)
        with torch.no_grad():
            logprobs = backend.logprobs(batch, 1.0)[0].cpu().numpy()
        at = 0
        for piece, index in batch.order:
            node = nodes[index]
            own = logprobs[at : at + int(part[piece].masks[index].sum())]
            nodes[index] = Node.sampled(node.parent, node.token_ids, np.minimum(own, 0.0), node.finish)
            at += len(own)
    return replace(tree, tree=RolloutTree("q", tuple(nodes)))


def measured(setting: Setting, update: Callable[[], object]) -> dict[str, Any]:
    """Seconds and peak memory of an update, or ``failed`` where memory ran out."""
    setting.forget_peak()
    try:
        first, median, times = setting.repeated(update, REPEATS)
    except torch.OutOfMemoryError as error:
        return {"failed": str(error).partition(". ")[0]}
    return {"seconds": median, "first_seconds": first, "times": times, "peak_memory": setting.peak_memory}


def cells(row: dict[str, Any], rows: dict[str, dict[str, Any]]) -> list[str]:
    if "failed" in row:
        return [f"{row['tokens']:,}", row["failed"], "", "", "", "", ""]
    memory = "" if row["peak_memory"] is None else f"{row['peak_memory'] / 2**30:.1f}"
    other = rows["rows"].get("seconds")
    faster = "" if row is rows["rows"] or other is None else f"{other / row['seconds']:.2f}"
    speed = row["tokens"] / row["seconds"]
    return [
        f"{row['tokens']:,}",
        f"{row['seconds']:.3f}",
        f"{speed:,.0f}",
        f"{row['share_of_peak']:.1%}",
        memory,
        f"{row['first_seconds']:.1f}",
        faster,
    ]
