"""Entropies behind cuts: against the distributions of a plain forward pass, one prefix at a time."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from spo_core.analysis.forwarded import cut_entropies, forwarded
from spo_core.config import load_params
from spo_core.credit import assign_credit
from spo_core.learn.backend import TorchBackend
from spo_core.tree import FinishReason, RolloutTree
from tests.analysis.test_drift import TEMPERATURE, distribution
from tests.conftest import ROOT, random_tree


@pytest.fixture
def bench(policy):
    learn = load_params(ROOT, None, ("learn.max_tokens_per_forward=40",)).learn  # several passes a tree
    return SimpleNamespace(backend=TorchBackend(policy, None, learn))


def trees(count: int) -> list[RolloutTree]:
    return [random_tree(np.random.default_rng(i), depth=3, widest=3, longest=4, vocabulary=9) for i in range(count)]


def prefix(tree: RolloutTree, index: int) -> list[int]:
    above, parent = [], tree.nodes[index].parent
    while parent >= 0:
        above, parent = [*tree.nodes[parent].token_ids.tolist(), *above], tree.nodes[parent].parent
    return above


def test_entropies_behind_cuts_are_those_of_the_plain_distributions(bench, policy, params):
    pairs = [(tree, assign_credit(tree, params.credit)) for tree in trees(6)]
    expected = []
    for tree, _ in pairs:
        for index, node in enumerate(tree.nodes):
            cut = index and tree.nodes[node.parent].finish is FinishReason.SEGMENT
            if cut and node.trainable and len(node.token_ids):
                own = distribution(policy, prefix(tree, index))
                expected.append(float(-(own.exp() * own).sum()))
    found = cut_entropies(bench, pairs, TEMPERATURE)
    assert len(found) > 20 and sorted(found) == pytest.approx(sorted(expected), abs=1e-4)


def test_every_chosen_token_comes_once_beside_what_was_sampled(bench, policy):
    for tree in trees(3):
        masks = tuple(np.full(len(node.token_ids), node.trainable) for node in tree.nodes)
        passes = list(forwarded(bench, bench.backend.policy, tree, masks, TEMPERATURE))
        sampled, logprobs = (np.concatenate(own) for own in zip(*passes, strict=True))
        kept = [node.logprobs for node in tree.nodes if node.trainable]
        assert sorted(sampled) == pytest.approx(sorted(np.concatenate(kept)))
        expected = [
            float(distribution(policy, [*prefix(tree, i), *node.token_ids[:at].tolist()])[int(node.token_ids[at])])
            for i, node in enumerate(tree.nodes)
            if node.trainable
            for at in range(len(node.token_ids))
        ]
        assert sorted(logprobs) == pytest.approx(sorted(expected), abs=1e-4)


def test_whole_responses_have_no_cuts(bench, params):
    tree = random_tree(np.random.default_rng(0), depth=1, widest=3, longest=4, vocabulary=9)
    assert not len(cut_entropies(bench, [(tree, assign_credit(tree, params.credit))], TEMPERATURE))
    assert torch.is_grad_enabled()
