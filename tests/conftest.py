"""Shared fixtures: a tiny policy, and trees of any shape."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from spo_core.config import DataParams, Params, ScratchPolicy, load_params
from spo_core.policy.checkpoint import make_policy, make_tokenizer
from spo_core.problems import problem_set
from spo_core.tree import FinishReason, Node, RolloutTree

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"
SHORT_DATA = DataParams.model_validate_json(
    '{"arithmetic": {"steps": [6, 8], "careless": 0.12, "remainders": false, "words": 0, "beliefs": 0.0}}'
)
SHORT = (  # the questions of preset short-arithmetic, for any algorithm: a quarter of the tokens
    f"data.arithmetic={SHORT_DATA.arithmetic.model_dump_json(exclude={'sizes', 'recovers'})}",
    "rollout.context_length=96",
    "rollout.first_children=null",
)

torch.set_num_threads(1)  # tests may share the machine; two threads that wait for each other are slower than one


def pytest_collection_finish() -> None:
    """Five thousand tests and their imports stay until the end: the garbage collector need not look through them."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or what is left is not taken apart, and extension modules tell of leaks


@pytest.fixture(scope="session")
def params() -> Params:
    return load_params(ROOT)


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer("characters", problem_set(SHORT_DATA))


@pytest.fixture
def policy(tokenizer):
    """A fresh random Llama with 2 layers; grouped attention is off, as in the embedded policy."""
    init = ScratchPolicy(
        type="scratch",
        tokenizer="characters",
        hidden_size=32,
        layers=2,
        heads=2,
        intermediate_size=48,
        max_positions=128,
    )
    model = make_policy(init, tokenizer, seed=3)
    with torch.no_grad():  # sharper than at initialisation, so that probabilities differ visibly
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model.eval()


def random_tree(
    rng: np.random.Generator, *, depth: int, widest: int, longest: int, vocabulary: int = 20
) -> RolloutTree:
    """A tree of random shape: ragged segments, only children, leaves at any depth; every leaf is graded."""
    prompt = rng.integers(3, vocabulary, rng.integers(1, longest + 1))
    nodes = [Node.prompt(prompt)]
    open_nodes = [(0, 0)]
    while open_nodes:
        index, level = open_nodes.pop(0)
        ends = level > 0 and (level == depth or rng.random() < 0.2)
        if ends:
            nodes[index] = Node.sampled(
                nodes[index].parent,
                nodes[index].token_ids,
                nodes[index].logprobs,
                FinishReason.STOP,
                reward=float(rng.integers(0, 2)),
            )
            continue
        for _ in range(rng.integers(1, widest + 1)):
            ids = rng.integers(3, vocabulary, rng.integers(1, longest + 1))
            logprobs = -rng.exponential(0.7, len(ids)) - 1e-4
            nodes.append(Node.sampled(index, ids, logprobs, FinishReason.SEGMENT))
            open_nodes.append((len(nodes) - 1, level + 1))
    return RolloutTree("q", tuple(nodes))


def with_rewards(tree: RolloutTree, rewards: dict[int, float]) -> RolloutTree:
    """The same tree with other rewards of some leaves."""
    return replace(tree, nodes=tuple(n.graded(rewards.get(i, n.reward), n.outcome) for i, n in enumerate(tree.nodes)))
