"""Generalised advantages against naive sums over every way down, in float64; what lambda 0 and 1 are equal to."""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_core.config import CreditParams
from spo_core.credit import assign_credit
from spo_core.credit.advantage import difference
from spo_core.credit.gae import segment_gae, token_gae
from spo_core.credit.value import given_values, tree_mean
from spo_core.errors import TrainingError
from spo_core.tree import RolloutTree
from tests.conftest import random_tree

SEEDS = st.integers(0, 2**32)
some = partial(random_tree, depth=3, widest=3, longest=4)


def tree_and_values(seed: int) -> tuple[RolloutTree, tuple[np.ndarray, ...]]:
    """A random tree, and a critic's values: equal before the first tokens of siblings, as these are one state."""
    rng = np.random.default_rng(seed)
    tree = some(rng)
    before = [rng.random(len(node.token_ids)) for node in tree.nodes]
    for children in tree.children:
        for child in children:
            before[child][0] = before[children[0]][0]
    return tree, tuple(before)


def ways(tree: RolloutTree, node: int) -> list[tuple[float, list[int]]]:
    """Every way from a node to a leaf below it, with its probability where branches weigh the same."""
    below = tree.children[node]
    if not below:
        return [(1.0, [node])]
    return [(p / len(below), [node, *way]) for child in below for p, way in ways(tree, child)]


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 0.3, 0.95, 1.0]))
def test_over_segments_it_is_the_expected_sum_of_differences(seed, decay):
    tree, before = tree_and_values(seed)
    values = given_values(tree, before)
    found = segment_gae(tree, values, decay)
    for node in range(1, len(tree.nodes)):
        expected = 0.0
        for probability, way in ways(tree, node):
            steps = [values[i] - values[tree.nodes[i].parent] for i in way]
            expected += probability * sum(decay**k * step for k, step in enumerate(steps))
        assert found[node] == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 0.3, 0.95, 1.0]))
def test_over_tokens_it_is_the_expected_sum_of_differences(seed, decay):
    tree, before = tree_and_values(seed)
    found = token_gae(tree, before, decay)
    for node in range(1, len(tree.nodes)):
        for t in range(len(tree.nodes[node].token_ids)):
            expected = 0.0
            for probability, way in ways(tree, node):
                states = np.concatenate([before[node][t:], *(before[i] for i in way[1:]), [tree.nodes[way[-1]].reward]])
                expected += probability * sum(decay**k * step for k, step in enumerate(np.diff(states)))
            assert found[node][t] == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_lambda_0_is_the_difference_and_lambda_1_the_return_less_the_value(seed):
    tree, before = tree_and_values(seed)
    values, returns = given_values(tree, before), tree_mean(tree)
    assert segment_gae(tree, values, 0.0).tolist() == difference(tree, values).tolist()
    parents = np.array([node.parent for node in tree.nodes])
    assert segment_gae(tree, values, 1.0)[1:] == pytest.approx((returns - values[parents])[1:])
    for node, own in enumerate(token_gae(tree, before, 1.0)[1:], start=1):
        assert own == pytest.approx(returns[node] - before[node])


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.floats(0, 1))
def test_with_tree_means_lambda_changes_nothing(seed, decay):
    """What follows a segment is 0 on average, as its value is the mean of what follows."""
    tree = some(np.random.default_rng(seed))
    values = tree_mean(tree)
    assert segment_gae(tree, values, decay) == pytest.approx(difference(tree, values), abs=1e-12)


def test_a_prompt_without_a_value_gives_its_children_no_advantage():
    tree = some(np.random.default_rng(1))
    values = tree_mean(tree)
    values[0] = math.nan
    found = segment_gae(tree, values, 0.9)
    assert np.isfinite(found).all() and not found[list(tree.children[0])].any()


def credit(**advantage) -> CreditParams:
    return CreditParams.model_validate(
        {
            "partition": {"type": "fixed_tokens", "tokens": 4},
            "value": {"type": "critic"},
            "advantage": {"type": "gae", **advantage},
            "mask": {"type": "all"},
        }
    )


def test_credit_over_tokens_has_an_advantage_a_token():
    tree, before = tree_and_values(3)
    params = credit(over="tokens", **{"lambda": 0.5})
    found = assign_credit(tree, params, before)
    for own, expected in zip(found.advantages, token_gae(tree, before, 0.5), strict=True):
        assert own == pytest.approx(expected, rel=1e-6)
    assert CreditParams.model_validate(params.model_dump()) == params
    assert params.model_dump()["advantage"]["lambda"] == 0.5


def test_trees_alone_have_no_values_of_a_critic():
    tree, _ = tree_and_values(3)
    with pytest.raises(TrainingError, match=r"credit\.value critic: a run's own networks compute it"):
        assign_credit(tree, credit())
