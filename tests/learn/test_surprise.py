"""What a critic is told of log-probs: against a naive count, in values of plain sequences, and worth learning from."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from spo_core.learn.critic import quality
from spo_core.learn.surprise import RARE, surprises
from spo_core.tree import FinishReason, Node, RolloutTree
from tests.conftest import random_tree
from tests.learn.test_critic import make, randomised, trees_of


def naive(logprobs: list[float]) -> list[float]:
    """The features of the state behind these tokens."""
    if not logprobs:
        return [0.0] * (4 + len(RARE))
    rare = [sum(own < limit for own in logprobs) for limit in RARE]
    numbers = [-sum(logprobs), -min(logprobs), -logprobs[-1], *rare, len(logprobs)]
    return [math.log1p(number) for number in numbers]


@pytest.mark.parametrize("seed", range(4))
def test_features_are_those_of_the_tokens_before_on_the_path(seed):
    tree = random_tree(np.random.default_rng(seed), depth=3, widest=3, longest=5)
    found = surprises(tree)
    assert not found[0].any() and len(found[0]) == len(tree.nodes[0].token_ids)
    for index in range(1, len(tree.nodes)):
        path = tree.path(index)[1:]
        before = [float(own) for i in path[:-1] for own in tree.nodes[i].logprobs]
        for place, row in enumerate(found[index]):
            expected = naive(before + [float(own) for own in tree.nodes[index].logprobs[:place]])
            assert row.tolist() == pytest.approx(expected, abs=1e-5)


def test_values_are_those_without_it_until_it_is_trained_and_then_its_own_part_is_added(policy):
    trees = trees_of(1)
    plain, told = (randomised(make(policy, surprise=own)) for own in (False, True))
    assert all(
        np.array_equal(a, b)
        for x, y in zip(plain.values(trees), told.values(trees), strict=True)
        for a, b in zip(x, y, strict=True)
    )
    with torch.no_grad():
        torch.manual_seed(2)
        told.trained["surprise"][-1].weight.normal_()
    for tree, without, found in zip(trees, plain.values(trees), told.values(trees), strict=True):
        for node, (own, value) in enumerate(zip(without, found, strict=True)):
            if node:
                added = (
                    told.trained["surprise"](torch.from_numpy(surprises(tree)[node]))[:, 0].detach().double().numpy()
                )
                own = own.clip(1e-12, 1 - 1e-12)
                assert value == pytest.approx(1 / (1 + np.exp(-(np.log(own / (1 - own)) + added))), abs=1e-5)


def surprising(seed: int, iteration: int = 1, count: int = 16) -> list[RolloutTree]:
    """Responses of random tokens that are right where none was improbable."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        nodes = [Node.prompt([4, 3])]
        for _ in range(2):
            logprobs = np.log(rng.choice([0.95, 0.05], 6, p=[0.85, 0.15]))
            reward = float(logprobs[:-1].min() > math.log(0.5))
            nodes.append(Node.sampled(0, rng.integers(7, 20, 6), logprobs, FinishReason.STOP, reward=reward))
        found.append(RolloutTree("q", tuple(nodes), 0, iteration))
    return found


def test_it_learns_what_tokens_do_not_show(policy):
    unseen, explained = surprising(100, count=64), {}
    for told in (False, True):
        critic = make(
            policy, network="head", surprise=told, epochs=12, learning_rate=1e-2, learn={"max_tokens_per_forward": 2000}
        )
        for iteration in (1, 2):
            critic.update(surprising(iteration, iteration), iteration)
        explained[told] = quality(unseen, critic.values(unseen))["explained_variance"]
    assert explained[False] < 0.1 < 0.3 < explained[True]


def test_it_is_saved_and_loaded(policy, tmp_path):
    critic = make(policy, surprise=True, network="head")
    critic.update(surprising(1), 1)
    critic.save(tmp_path)
    again = make(policy, surprise=True, network="head")
    again.load(tmp_path)
    for one in (critic, again):
        one.update(surprising(2, 2), 2)
    both = zip(critic.trained.parameters(), again.trained.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in both)
