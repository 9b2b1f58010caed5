"""Adaptive Monte Carlo: its rounds as a pure rule, and trees that are sampled by it."""

from collections import Counter

import numpy as np
import pytest
from scipy.stats import beta

from spo_core.config import AdaptiveMonteCarlo
from spo_core.credit.value import shared_monte_carlo
from spo_core.rollout.value_rollouts import State, ValueGroup, posterior_width
from tests.rollout.test_sampler import fan, flat, grow, spines

PARAMS = AdaptiveMonteCarlo(type="adaptive_monte_carlo", tolerance=0.5, min_rollouts=4, max_rollouts=8)


def state(tokens, rewards=(), name="0"):
    return State(1, np.array(tokens, np.int32), (name, "cut1"), None, len(rewards), list(rewards))


@pytest.mark.parametrize(("total", "count"), [(0, 3), (2, 4), (7, 8), (0.5, 3)])
def test_the_posterior_is_jeffreys(total, count):
    low, high = beta.ppf([0.05, 0.95], 0.5 + total, 0.5 + count - total)
    assert posterior_width(total, count) == pytest.approx(high - low)


def test_rounds_of_one_state():
    """4 at first; narrow after 4 equal ones (width 0.38), not after 2 of 4 (0.64); never more than 8."""
    mixed = state([1, 5], [1, 0, 1, 0])
    other = state([1, 6], [0, 0, 0, 0])
    fresh = state([1, 7])
    assert ValueGroup([mixed, fresh], [1, 0]).next_round(PARAMS) == [(fresh, 4)]
    assert ValueGroup([mixed, other], [1, 0]).next_round(PARAMS) == [(mixed, 4)]
    mixed.rewards += [1, 0, 1]
    assert ValueGroup([mixed, other], [1, 0]).next_round(PARAMS) == [(mixed, 1)]
    mixed.rewards += [0]
    assert ValueGroup([mixed, other], [1, 0]).next_round(PARAMS) == []


def test_a_group_stops_once_nothing_in_it_can_differ():
    """Three equal rewards leave a state undecided (width 0.46 > 0.4), but not the 12 of its group."""
    strict = PARAMS.model_copy(update={"tolerance": 0.4, "min_rollouts": 3})
    states = [state([1, 5], [0, 0, 0]), state([1, 6], [0, 0, 0]), state([1, 7], [0, 0, 0])]
    assert [n for _, n in ValueGroup(states, [0] * 11 + [1]).next_round(strict)] == [3, 3, 3]
    assert ValueGroup(states, [0] * 12).next_round(strict) == []


def test_equal_states_share_the_fan_of_the_first_response():
    late, first, other = state([1, 5], name="10"), state([1, 5], name="2"), state([1, 5, 6], name="0")
    group = ValueGroup([late, other, first])
    assert group.share() == [late]
    assert group.states == [first, other]


def test_a_rollout_counts_for_the_states_it_came_through():
    early, passed, missed = state([1, 5]), state([1, 5, 6]), state([1, 5, 7], name="1")
    group = ValueGroup([early, passed, missed])
    group.share()
    group.record(2, np.array([1, 5, 6, 2]), 1.0)
    assert [s.rewards for s in group.states] == [[1.0], [1.0], []]
    group.record(3, np.array([1, 5, 6, 2]), 0.0)  # began behind the first state, so it is no sample from there
    assert [s.rewards for s in group.states] == [[1.0], [1.0, 0.0], []]


def adaptive(policy, reward, **options):
    value = {"type": "adaptive_monte_carlo", "tolerance": 0.5, "min_rollouts": 4, "max_rollouts": 8, "prompt": "always"}
    credit = {"partition": {"type": "cutpoints", "interval": 3}, "value": value}
    return grow(
        policy, credit, (3,), known={"grade": lambda ended: [(reward(*response), "") for response in ended]}, **options
    )


def parity(question, token_ids, finish):
    return float(token_ids.sum() % 2)


def test_adaptive_trees_do_not_depend_on_how_much_is_decoded_at_once(policy):
    first, *others = (flat(adaptive(policy, parity, concurrency=n)) for n in (5, 64))
    assert all(other == first for other in others)


def test_every_state_has_at_least_the_fewest_and_at_most_the_most_rollouts(policy):
    counts = Counter()
    for tree in adaptive(policy, parity):
        fans = {}
        for nodes, _, _ in spines(tree):
            for node in [0, *nodes[:-1]]:
                fans.setdefault(tree.completion(node).tobytes(), set()).update(fan(tree, node))
        counts.update(len(f) for f in fans.values())
    assert min(counts) >= 4 and max(counts) <= 8
    assert len(counts) > 1, "rewards of this test should leave some states undecided and others not"


def test_certain_rewards_are_sampled_no_further_than_at_first(policy):
    for tree in adaptive(policy, lambda question, token_ids, finish: 1.0):
        assert {len(fan(tree, i)) for i, c in enumerate(tree.children) if c} <= {0, 4}


def test_every_state_of_an_adaptive_tree_is_valued(policy):
    for tree in adaptive(policy, parity):
        assert [tree.nodes[i].reward for i in tree.leaves] == [
            parity("", tree.completion(i), None) for i in tree.leaves
        ]
        values = shared_monte_carlo(tree)
        assert np.isfinite(values).all() and (values >= 0).all() and (values <= 1).all()
