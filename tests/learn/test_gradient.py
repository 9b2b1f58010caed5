"""The gradient of trees without a step: the sum of its trees' own, and what an optimizer step would descend."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from spo_core.config import load_params
from spo_core.credit import assign_credit
from spo_core.learn.backend import TorchBackend
from spo_core.learn.trainer import Trainer
from spo_core.tree import RolloutTree
from tests.conftest import ROOT, random_tree

TEMPERATURE = 0.8


@pytest.fixture
def trainer(policy):
    learn = load_params(ROOT, None, ("learn.max_tokens_per_forward=64",)).learn
    return Trainer(TorchBackend(policy, None, learn), learn, temperature=TEMPERATURE, seed=0)


@pytest.fixture
def pairs(params, policy):
    rng = np.random.default_rng(5)
    trees = [sampled_by(policy, random_tree(rng, depth=3, widest=3, longest=5)) for _ in range(4)]
    return [(tree, assign_credit(tree, params.credit)) for tree in trees]


def logprobs(policy, tree: RolloutTree, index: int) -> torch.Tensor:
    """Log-probs of a node's tokens, [tokens], by a forward pass of its own."""
    ids = torch.tensor(np.concatenate([tree.nodes[i].token_ids for i in tree.path(index)]), dtype=torch.long)
    start = len(ids) - len(tree.nodes[index].token_ids)
    own = policy(ids[None]).logits[0, start - 1 : -1] / TEMPERATURE
    return own.log_softmax(-1).gather(1, ids[start:, None])[:, 0]


def sampled_by(policy, tree: RolloutTree) -> RolloutTree:
    """The tree with the policy's own log-probs."""
    with torch.no_grad():
        found = [logprobs(policy, tree, i).numpy() for i in range(1, len(tree.nodes))]
    nodes = [replace(node, logprobs=own) for node, own in zip(tree.nodes[1:], found, strict=True)]
    return replace(tree, nodes=(tree.nodes[0], *nodes))


def flat(gradient) -> torch.Tensor:
    return torch.cat([g.double().reshape(-1) for g in gradient])


def naive(policy, pairs) -> torch.Tensor:
    """Sum over trained tokens of -A grad log p."""
    policy.zero_grad()
    for tree, credit in pairs:
        for i in range(1, len(tree.nodes)):
            weights = torch.from_numpy(np.where(credit.masks[i], credit.advantages[i], 0.0))
            (-(weights * logprobs(policy, tree, i)).sum()).backward()
    gradient = flat([p.grad for p in policy.parameters()])
    policy.zero_grad()
    return gradient


def test_sum_of_its_trees_and_of_naive_terms(trainer, pairs, policy):
    trained = trainer.add_gradient(pairs)
    together = flat(trainer.backend.take_gradient())
    one_by_one, tokens = torch.zeros_like(together), 0
    for pair in pairs:
        tokens += trainer.add_gradient([pair])
        one_by_one += flat(trainer.backend.take_gradient())
    counted = [(m & (a != 0)).sum() for _, c in pairs for m, a in zip(c.masks, c.advantages, strict=True)]
    assert trained == tokens == sum(counted) > 0
    torch.testing.assert_close(one_by_one, together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(naive(policy, pairs), together, rtol=1e-4, atol=1e-5)


def test_nothing_is_left_behind(trainer, pairs, policy):
    before = [p.detach().clone() for p in policy.parameters()]
    trainer.add_gradient(pairs)
    trainer.backend.take_gradient()
    assert trainer.step == 0 and all(p.grad is None for p in policy.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    silent = [(tree, type(c)(c.values, tuple(np.zeros_like(a) for a in c.advantages), c.masks)) for tree, c in pairs]
    assert trainer.add_gradient(silent) == 0 and not any(g.any() for g in trainer.backend.take_gradient())
