"""Drift: against plain sums, and against the KL of two policies by enumeration."""

from __future__ import annotations

import copy
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from spo_core.analysis.drift import check_start, drift
from spo_core.config import load_params
from spo_core.errors import DataError
from spo_core.learn.backend import TorchBackend
from spo_core.policy.checkpoint import save_policy
from spo_core.tree import FinishReason, Node, RolloutTree
from tests.conftest import ROOT

TEMPERATURE = 0.8
PROMPT = (5, 9, 4)


@pytest.fixture
def start(policy, tokenizer, tmp_path):
    save_policy(policy, tokenizer, tmp_path / "start")
    return tmp_path / "start"


@pytest.fixture
def moved(policy):
    """The policy after a step in a random direction, on a bench."""
    own = copy.deepcopy(policy)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in own.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    learn = load_params(ROOT, None, ("learn.max_tokens_per_forward=40",)).learn
    return SimpleNamespace(backend=TorchBackend(own, None, learn))


def distribution(model, tokens) -> torch.Tensor:
    """Log-probs of the next token, float64 [vocabulary]."""
    with torch.no_grad():
        return (model(torch.tensor([tokens])).logits[0, -1].double() / TEMPERATURE).log_softmax(-1)


def responses(model, rng: np.random.Generator, question: str, count: int, length: int) -> RolloutTree:
    """Responses of ``length`` tokens, sampled token by token."""
    nodes = [Node.prompt(PROMPT)]
    for _ in range(count):
        ids, logprobs = [], []
        for _ in range(length):
            own = distribution(model, [*PROMPT, *ids]).numpy()
            chosen = int(rng.choice(len(own), p=np.exp(own) / np.exp(own).sum()))
            ids.append(chosen)
            logprobs.append(own[chosen])
        nodes.append(Node.sampled(0, ids, logprobs, FinishReason.LENGTH, reward=0.0))
    return RolloutTree(question, tuple(nodes))


def test_a_policy_has_not_drifted_from_itself(policy, start, moved):
    still = SimpleNamespace(backend=TorchBackend(policy, None, moved.backend.params))
    trees = [responses(policy, np.random.default_rng(i), f"q{i}", 3, 5) for i in range(3)]
    found = drift(still, start, trees, TEMPERATURE)
    assert found.distance == found.relative == 0
    assert abs(found.kl_token.value) < 1e-9 and abs(found.kl_response.value) < 1e-8


def test_distance_is_the_norm_of_the_difference(policy, start, moved):
    trees = [responses(policy, np.random.default_rng(0), "q", 2, 3)]
    found = drift(moved, start, trees, TEMPERATURE)
    ours, theirs = (
        torch.cat([p.detach().double().reshape(-1) for p in m.parameters()]) for m in (moved.backend.model, policy)
    )
    assert found.distance == pytest.approx(float((ours - theirs).norm()), rel=1e-6)
    assert found.relative == pytest.approx(float((ours - theirs).norm() / theirs.norm()), rel=1e-6)
    assert math.isnan(found.kl_token.error), "one question gives no error"


def test_kl_is_that_of_all_responses_by_enumeration(policy, start, moved):
    """Two tokens: the sum over the whole vocabulary, squared."""
    model, length = moved.backend.model, 2
    exact = 0.0
    vocabulary = range(model.config.vocab_size)
    for first in ([], *([token] for token in vocabulary)):
        p, q = distribution(model, [*PROMPT, *first]), distribution(policy, [*PROMPT, *first])
        reached = distribution(model, PROMPT)[first[0]].exp() if first else 1.0
        exact += float(reached * (p.exp() * (p - q)).sum())
    trees = [responses(model, np.random.default_rng(i), f"q{i}", 8, length) for i in range(60)]
    found = drift(moved, start, trees, TEMPERATURE)
    assert abs(found.kl_response.value - exact) < 4 * found.kl_response.error < 0.5 * exact
    assert found.kl_token.value == pytest.approx(found.kl_response.value / length)
    terms = list(itertools.chain.from_iterable(_terms(policy, tree) for tree in trees[:3]))
    assert drift(moved, start, trees[:3], TEMPERATURE).kl_token.value == pytest.approx(np.mean(terms), rel=1e-4)


def _terms(policy, tree):
    for node in tree.nodes[1:]:
        for place, logprob in enumerate(node.logprobs):
            own = distribution(policy, [*PROMPT, *node.token_ids[:place].tolist()])[int(node.token_ids[place])]
            yield math.expm1(float(own) - float(logprob)) - (float(own) - float(logprob))


def test_a_policy_of_other_shape_is_refused(policy, start, moved, params):
    wider = copy.deepcopy(policy)
    wider.resize_token_embeddings(wider.config.vocab_size + 8)
    other = SimpleNamespace(backend=TorchBackend(wider, None, moved.backend.params))
    with pytest.raises(DataError, match=r"lm_head\.weight has shape .*--start"):
        check_start(other, start)
    check_start(moved, start)
