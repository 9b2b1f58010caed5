"""Trees and report inputs for the tests of this folder."""

from __future__ import annotations

import numpy as np

from spo_core.config import CreditParams
from spo_core.credit import Credit, assign_credit
from spo_core.observe.report import ReportInputs
from spo_core.tree import Finish, Node, RolloutTree

TREE = CreditParams.model_validate(
    {
        "partition": {"type": "fixed_tokens", "tokens": 20},
        "value": {"type": "tree_mean"},
        "advantage": {"type": "difference"},
        "mask": {"type": "low_probability", "threshold": 0.9},
    }
)
CHAIN = CreditParams.model_validate(
    {
        "partition": {"type": "cutpoints", "interval": 1},
        "value": {"type": "monte_carlo", "rollouts": 9},
        "advantage": {"type": "difference"},
        "mask": {"type": "low_probability", "threshold": 0.9},
    }
)


def decode(ids) -> str:
    """A token id is a code point."""
    return "".join(chr(i) for i in ids)


def node(parent: int, text: str, finish: Finish = Finish.SEGMENT, *, logprob: float = -0.5, **more) -> Node:
    return Node.sampled(parent, [ord(c) for c in text], [logprob] * len(text), finish, **more)


def leaf(parent: int, text: str, correct: bool, **more) -> Node:
    return node(parent, text, Finish.STOP, reward=float(correct), outcome="correct" if correct else "wrong", **more)


def prompt(text: str = "1+1=?\n") -> Node:
    return Node.prompt([ord(c) for c in text])


def small_tree(text: str = "2") -> tuple[RolloutTree, Credit, str]:
    tree = RolloutTree("small-0", (prompt(), leaf(0, text, True), leaf(0, "3", False)))
    return tree, assign_credit(tree, TREE), "1+1=?"


def full_tree(branch: int = 6, depth: int = 3, tokens: int = 20) -> tuple[RolloutTree, Credit, str]:
    """6-6-6 has 258 segments."""
    rng = np.random.default_rng(0)
    nodes, level = [prompt()], [0]
    for d in range(1, depth + 1):
        below = []
        for parent in level:
            for _ in range(branch):
                ids, logprobs = rng.integers(97, 123, tokens), -rng.exponential(0.2, tokens)
                correct = bool(rng.integers(0, 2))
                end = {"reward": float(correct), "outcome": "correct" if correct else "wrong"} if d == depth else {}
                nodes.append(Node.sampled(parent, ids, logprobs, Finish.STOP if end else Finish.SEGMENT, **end))
                below.append(len(nodes) - 1)
        level = below
    tree = RolloutTree("full-0", tuple(nodes))
    return tree, assign_credit(tree, TREE), "a question"


def chain_tree() -> tuple[RolloutTree, Credit, str]:
    """Two trajectories; the first has three segments with fans of 9 (4 and 7 of them correct), the second is whole."""
    nodes = [prompt(), node(0, "1+1"), node(1, "="), leaf(2, "2", True), leaf(0, "3", False)]
    for parent, correct in ((1, 4), (2, 7)):
        nodes += [leaf(parent, f"v{parent}", k < correct, trainable=False) for k in range(9)]
    tree = RolloutTree("chain-0", tuple(nodes))
    return tree, assign_credit(tree, CHAIN), "1+1=?"


def evaluation(checkpoint: str, accuracy: float) -> dict:
    cell = {
        "context_length": 80,
        "questions": 250,
        "accuracy": accuracy,
        "standard_error": 0.0213,
        "truncated": 0.0614,
        "no_answer": 0.0728,
        "unparsable": 0.0036,
        "timeout": 0.0012,
        "mean_completion_tokens": 51.27,
    }
    return {
        "checkpoint": checkpoint,
        "problem_set": "arithmetic",
        "samples": 4,
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": 0,
        "grader": "corrected",
        "prompt_digest": "3f8a" * 16,
        "versions": {"lighteval": "0.13.0"},
        "seconds": 41.2,
        "generated_tokens": 51270,
        "cells": {"long": cell},
    }


def inputs() -> ReportInputs:
    iterations = [
        {
            "iteration": i,
            "generated_tokens": 50_000 * i,
            "rollout/reward": 0.4 + i / 100,
            "rollout/completion_tokens": 50.0,
            "rollout/truncated_share": 0.1,
            "rollout/unparsable_share": 0.01 * i,
            "rollout/timeout_share": 0.0,
            "credit/mask_share": 0.2,
            "credit/segments_with_advantage": 0.6,
            "train/clip_fraction": 0.01,
            "train/kl": 0.001 * i,
            "train/grad_norm": 1.0,
            "timing/rollout": 4.125,
            "timing/advantage": 0.081,
            "timing/train": 3.375,
        }
        for i in range(1, 9)
    ]
    summary = {
        "accuracy_before": 0.4123,
        "standard_error_before": 0.0213,
        "accuracy_after": 0.6557,
        "standard_error_after": 0.0213,
        "contexts": {"long": {"context_length": 80}},
        "generated_tokens": 400_000,
        "seconds": {"warmup": 71.24, "train": 333.25},
    }
    return ReportInputs(
        title="tree run",
        summary=summary,
        evaluations={"warmup": evaluation("warmup", 0.4123), "final": evaluation("final", 0.6557)},
        iterations=iterations,
        warmup=[{"iteration": i, "warmup/loss": 2.0 / i} for i in range(1, 9)],
        params={"learn": {"learning_rate": 0.0003, "kl_coefficient": 0.0001}, "run": {"name": None}},
        provenance={"code_revision": "0123abcd", "uncommitted_changes": False},
        trees=[small_tree(), chain_tree()],
    )
