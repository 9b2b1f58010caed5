"""Part 1: the loss and gradient of a ragged tree, by every way to attend, against one padded row a segment."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from benchmarks.gpu.setting import Result, Setting, table
from benchmarks.tree_update import Case, update_flat, update_tree, weighted
from spo_core.config import LearnParams
from spo_core.learn.objective import WeightedTree
from spo_core.learn.precision import working_copy
from spo_core.learn.tree_forward import TreePolicy
from spo_core.tree import FinishReason, Node

CASE = Case("4 layers", layers=4, hidden=256, heads=4, kv_heads=2, intermediate=512, vocabulary=1000)
SMALL = Case("2 layers", layers=2, hidden=64, heads=4, kv_heads=2, intermediate=96, vocabulary=60)
WAYS = {"cuda": ("flex", "rows"), "cpu": ("rows",)}  # FlexAttention has no backward pass on CPUs
# tolerances, relative to the gradient's norm and to the loss of flat in float32. float32 may differ by the order of
# sums; bfloat16 by this many times what flat in bfloat16 differs by
FLOAT32, BFLOAT16 = 1e-4, 1.5
LEAST = 1e-3  # tolerance of bfloat16 where flat happens to be exact


def ragged(case: Case, longest: int, rng: np.random.Generator) -> WeightedTree:
    """A random tree: 1 to 4 children to a depth of 4, segments of 1 to ``longest`` tokens; some branches end early."""
    nodes = [Node.prompt(rng.integers(3, case.vocabulary, longest))]
    level = [0]
    for depth in range(1, 5):
        above, level = level, []
        for parent in above:
            for _ in range(rng.integers(1, 5)):
                size = int(rng.integers(1, longest + 1))
                ends = depth == 4 or rng.random() < 0.2
                finish = FinishReason.STOP if ends else FinishReason.SEGMENT
                ids = rng.integers(3, case.vocabulary, size)
                nodes.append(Node.sampled(parent, ids, -rng.exponential(1.0, size) - 1e-3, finish))
                level += [] if ends else [len(nodes) - 1]
    return weighted(nodes, rng)


def found(model: PreTrainedModel, tree: WeightedTree, way: str) -> tuple[torch.Tensor, float]:
    """The gradient (flat, float64, on the CPU) and the loss of a tree, computed in one ``way``."""
    model.zero_grad()
    added = update_flat(model, tree, 16) if way == "flat" else update_tree(TreePolicy(model, way), tree, 10**6)
    gradient = torch.cat([p.grad.flatten().double().cpu() for p in model.parameters() if p.grad is not None])
    return gradient, float(added.loss)


def run(setting: Setting) -> Result:
    """Compare every way, in float32 and bfloat16, with flat in float32."""
    case = SMALL if setting.small else CASE
    torch.manual_seed(0)
    with torch.device(setting.device):
        model = Qwen2ForCausalLM(Qwen2Config(**case.config)).eval()
    with torch.no_grad():  # sharper than at initialisation, so that attention matters
        for parameter in model.parameters():
            parameter.mul_(2.0)
    tree = ragged(case, 8 if setting.small else 80, np.random.default_rng(0))
    truth, loss = found(copy.deepcopy(model), tree, "flat")
    rows: list[dict[str, Any]] = []
    shown = table(
        f"1. One tree of {sum(len(n.token_ids) for n in tree.tree.nodes):,} tokens, against flat in float32",
        "way",
        "loss differs by",
        "gradient differs by",
        "tolerance",
        "",
    )
    for dtype in ("float32", "bfloat16"):
        rounded = working_copy(model, LearnParams(learning_rate=1.0, dtype=dtype))
        tolerance = FLOAT32
        for way in ("flat", *WAYS[setting.device.type]):
            if (dtype, way) == ("float32", "flat"):
                continue
            gradient, own = found(copy.deepcopy(rounded), tree, way)
            apart = {"loss": abs(own - loss) / max(abs(loss), 1e-2), "gradient": relative(truth, gradient)}
            if way == "flat":  # in bfloat16
                tolerance = BFLOAT16 * max(*apart.values(), LEAST)
            equal = way == "flat" or max(apart.values()) <= tolerance
            rows.append({"dtype": dtype, "way": way, **apart, "tolerance": tolerance, "equal": equal})
            verdict = "" if way == "flat" else "equal" if equal else "NOT EQUAL"
            limit = "" if way == "flat" else f"{tolerance:.1e}"
            shown.add_row(f"{way}, {dtype}", f"{apart['loss']:.1e}", f"{apart['gradient']:.1e}", limit, verdict)
    unequal = [f"{row['way']} in {row['dtype']}" for row in rows if not row["equal"]]
    wrong = f"not the gradient of one padded row a segment: {', '.join(unequal)}" if unequal else None
    return Result(shown, {"case": case.name, "rows": rows}, wrong)


def relative(truth: torch.Tensor, other: torch.Tensor) -> float:
    return float((truth - other).norm() / truth.norm())
