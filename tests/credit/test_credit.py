"""Values and advantages against a published worked rule, and against naive recursions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_core.config import AllTokens, CreditParams, LowProbability
from spo_core.credit import assign_credit, read_credits, write_credits
from spo_core.credit.advantage import (
    best_of_k_progress,
    difference,
    group_normalized,
    leave_one_out,
    prover_progress,
    rejection,
)
from spo_core.credit.mask import token_mask
from spo_core.credit.value import monte_carlo, rewards_only, tree_mean
from spo_core.errors import DataError, TrainingError
from spo_core.tree import FinishReason, Node, RolloutTree
from tests.conftest import random_tree, with_rewards

TREE = CreditParams(
    partition={"type": "fixed_tokens", "tokens": 4},
    value={"type": "tree_mean"},
    advantage={"type": "difference"},
    mask={"type": "low_probability", "threshold": 0.9},
)


def group(rewards: list[float]) -> RolloutTree:
    leaves = (Node.sampled(0, [5], [-0.5], FinishReason.STOP, reward=r) for r in rewards)
    return RolloutTree("q", (Node.prompt([1]), *leaves))


def naive_value(tree: RolloutTree, index: int) -> float:
    below = [naive_value(tree, c) for c in tree.children[index]]
    return sum(below) / len(below) if below else tree.nodes[index].reward


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_tree_mean_is_the_recursion(seed):
    tree = random_tree(np.random.default_rng(seed), depth=3, widest=4, longest=3)
    values = tree_mean(tree)
    assert values == pytest.approx([naive_value(tree, i) for i in range(len(tree.nodes))])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_differences_telescope_along_every_response(seed):
    """Summed from the prompt to a leaf, V(child) - V(parent) is that leaf's reward minus the prompt's value."""
    tree = random_tree(np.random.default_rng(seed), depth=4, widest=3, longest=3)
    values = tree_mean(tree)
    advantages = difference(tree, values)
    for leaf in tree.leaves:
        assert advantages[tree.path(leaf)].sum() == pytest.approx(tree.nodes[leaf].reward - values[0])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_sibling_advantages_sum_to_zero(seed):
    tree = random_tree(np.random.default_rng(seed), depth=3, widest=4, longest=3)
    values = tree_mean(tree)
    for advantage in (difference, leave_one_out, group_normalized):
        advantages = advantage(tree, values)
        for children in tree.children:
            assert advantages[list(children)].sum() == pytest.approx(0, abs=1e-6)


def test_group_normalized_is_grpo():
    tree = group([1, 0, 0, 1, 1])
    rewards = np.array([1, 0, 0, 1, 1.0])
    expected = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
    assert group_normalized(tree, rewards_only(tree))[1:] == pytest.approx(expected)


def test_leave_one_out_is_rloo():
    assert leave_one_out(group([1, 0, 1]), np.array([math.nan, 1, 0, 1]))[1:] == pytest.approx([0.5, -1, 0.5])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_the_parent_mean_contains_the_child(seed):
    """Among n siblings, V(child) - V(parent) is (n - 1) / n of the leave-one-out advantage (docs/reference.md 1.3)."""
    tree = random_tree(np.random.default_rng(seed), depth=3, widest=4, longest=3)
    values = tree_mean(tree)
    apart, including = leave_one_out(tree, values), difference(tree, values)
    for children in tree.children:
        n = len(children)
        for child in children:
            assert including[child] == pytest.approx((n - 1) / n * apart[child])


def test_group_normalized_divides_the_difference_by_the_siblings_population_std():
    tree = group([1, 0, 0, 1])
    values = tree_mean(tree)
    expected = difference(tree, values)[1:] / (np.std([1, 0, 0, 1]) + 1e-8)
    assert group_normalized(tree, values)[1:] == pytest.approx(expected)


def two_levels() -> RolloutTree:
    """V(prompt) = 0.5; children worth 0.5 (from 1, 0) and 0.5 (from 0.5, 0.5)."""
    nodes = [Node.prompt([1])]
    nodes += [Node.sampled(0, [4], [-1], FinishReason.SEGMENT) for _ in range(2)]
    nodes += [Node.sampled(1, [2], [-1], FinishReason.STOP, reward=r) for r in (1.0, 0.0)]
    nodes += [Node.sampled(2, [2], [-1], FinishReason.STOP, reward=0.5) for _ in range(2)]
    return RolloutTree("q", tuple(nodes))


def test_best_of_k_progress_and_its_filter():
    """B(0) = 0, B(1/2) = 1 - 1/16, B(1) = 1 for k = 4; segments without progress have no advantage."""
    tree = two_levels()
    values = tree_mean(tree)
    progress = 1 / 16
    expected = [0, 0, 0, 1 + 5 * progress, 0 - 5 * (1 - progress), 0, 0]
    assert best_of_k_progress(tree, values, 4, 5.0, "none") == pytest.approx(expected)
    expected = [0, 0, 0, 0.5 + 5 * progress, -0.5 - 5 * (1 - progress), 0, 0]
    assert best_of_k_progress(tree, values, 4, 5.0, "parent") == pytest.approx(expected)


def test_best_of_k_progress_with_an_unvalued_parent_is_zero():
    tree = chain(first_cut_at_prompt=False)
    advantages = best_of_k_progress(tree, monte_carlo(tree), 4, 5.0, "none")
    spine = [i for i, n in enumerate(tree.nodes) if n.trainable]
    assert advantages[spine[0]] == 0 and advantages[spine[1]] != 0 and np.isfinite(advantages).all()


def test_prover_progress_by_hand():
    """Two responses of two segments, one right; the prover is right half the time at the prompt, always behind segment
    1, never behind segment 2. Best of 2: 3/4, 1, 0; ends have their rewards."""
    nodes = [Node.prompt([1]), *(Node.sampled(0, [t], [-1], FinishReason.SEGMENT) for t in (4, 5))]
    nodes += [Node.sampled(p, [2], [-1], FinishReason.STOP, reward=r) for p, r in ((1, 1.0), (2, 0.0))]
    fans = {0: (1.0, 0.0), 1: (1.0, 1.0), 2: (0.0, 0.0)}
    nodes += [
        Node.sampled(p, [3], [-1], FinishReason.STOP, trainable=False, reward=r) for p, own in fans.items() for r in own
    ]
    tree = RolloutTree("q", tuple(nodes))
    found = prover_progress(tree, monte_carlo(tree), 2, 4.0, "prompt")
    assert found[1:5] == pytest.approx([0.5 + 4 * 0.25, -0.5 - 4 * 0.75, 0.5 + 0, -0.5 + 0])
    assert not found[5:].any()
    plain = prover_progress(tree, monte_carlo(tree), 2, 4.0, "none")
    assert plain[1:5] == pytest.approx(found[1:5] + 0.5)
    unvalued = RolloutTree("q", tuple(n for n in nodes if n.trainable or n.parent))
    assert prover_progress(unvalued, monte_carlo(unvalued), 2, 4.0, "none")[1:3] == pytest.approx([1, 0])


def test_rejection_keeps_right_responses_once_and_the_first_of_them():
    """Responses 7 8, 7 8 again, 7 9 and 6 are right, 5 is wrong: two of three texts are kept, both through 7."""
    nodes = [Node.prompt([1])]
    nodes += [Node.sampled(0, [t], [-1], FinishReason.SEGMENT) for t in (7, 7, 7)]
    nodes += [Node.sampled(0, [t], [-1], FinishReason.STOP, reward=r) for t, r in ((5, 0.0), (6, 1.0))]
    nodes += [Node.sampled(p, [t], [-1], FinishReason.STOP, reward=1.0) for p, t in ((1, 8), (2, 8), (3, 9), (1, 9))]
    tree = RolloutTree("q", tuple(nodes))
    assert rejection(tree, 1.0, None).tolist() == [0, 1, 0, 1, 0, 1, 1, 0, 1, 0]
    assert rejection(tree, 1.0, 2).tolist() == [0, 1, 0, 0, 0, 1, 1, 0, 0, 0]
    assert rejection(tree, 1.1, None).tolist() == [0] * 10


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([None, 1, 3]))
def test_rejection_counts_kept_responses_through_a_segment(seed, limit):
    tree = random_tree(np.random.default_rng(seed), depth=3, widest=3, longest=2, vocabulary=6)
    found, kept = rejection(tree, 1.0, limit), {}
    for leaf in tree.leaves:
        if leaf and tree.nodes[leaf].reward >= 1 and (limit is None or len(kept) < limit):
            kept.setdefault(tuple(tree.completion(leaf)), leaf)
    through = [sum(i in tree.path(leaf) for leaf in kept.values()) for i in range(1, len(tree.nodes))]
    assert found[1:].tolist() == through and found[0] == 0


def test_rounding_is_no_progress():
    """A mean of equal values may differ from them in the last bit; the filter must still see none."""
    tree = group([0.1, 0.1, 0.1])
    values = np.array([0.1 + 2e-17 + 1e-16, 0.1, 0.1, 0.1])
    assert best_of_k_progress(tree, values, 4, 5.0, "none").tolist() == [0, 0, 0, 0]


def test_equal_rewards_and_only_children_have_no_advantage():
    for rewards in ([1.0, 1.0, 1.0], [0.0]):
        tree = group(rewards)
        for advantage in (leave_one_out, group_normalized):
            assert np.abs(advantage(tree, rewards_only(tree))).max() == 0


def chain(first_cut_at_prompt: bool) -> RolloutTree:
    """One trajectory of three segments; fans worth 0.5 at the prompt (if valued), 0.25 and 0.75 at the two cuts."""
    nodes = [Node.prompt([1])]
    if first_cut_at_prompt:
        nodes += [Node.sampled(0, [9], [-1], FinishReason.STOP, trainable=False, reward=r) for r in (1.0, 0.0)]
    spine = []
    for rewards in ((1, 0, 0, 0), (1, 1, 1, 0)):
        parent = spine[-1] if spine else 0
        spine.append(len(nodes))
        nodes.append(Node.sampled(parent, [4, 5], [-0.01, -2.0], FinishReason.SEGMENT))
        nodes += [
            Node.sampled(spine[-1], [9], [-1], FinishReason.STOP, trainable=False, reward=float(r)) for r in rewards
        ]
    nodes.append(Node.sampled(spine[-1], [6, 2], [-2.0, -0.01], FinishReason.STOP, reward=1.0))
    return RolloutTree("q", tuple(nodes))


def test_chain_advantages_are_differences_of_cut_values_and_end_in_the_true_reward():
    tree = chain(first_cut_at_prompt=True)
    values = monte_carlo(tree)
    advantages = difference(tree, values)
    spine = [i for i, n in enumerate(tree.nodes) if n.trainable]
    assert values[[0, *spine]] == pytest.approx([0.5, 0.25, 0.75, 1.0])
    assert advantages[spine] == pytest.approx([-0.25, 0.5, 0.25])
    assert not advantages[[i for i, n in enumerate(tree.nodes) if not n.trainable]].any()


def test_tokens_before_the_first_cut_have_no_advantage_where_the_prompt_is_not_valued():
    tree = chain(first_cut_at_prompt=False)
    values = monte_carlo(tree)
    advantages = difference(tree, values)
    spine = [i for i, n in enumerate(tree.nodes) if n.trainable]
    assert math.isnan(values[0])
    assert advantages[spine] == pytest.approx([0, 0.5, 0.25])


def test_mask_is_strictly_below_the_threshold():
    logprobs = np.log(np.array([0.5, 0.89, 0.95], np.float32))
    assert token_mask(logprobs, LowProbability(type="low_probability", threshold=0.9)).tolist() == [True, True, False]
    assert token_mask(np.float32([np.log(0.5)]), LowProbability(type="low_probability", threshold=0.4)).tolist() == [
        False
    ]
    assert token_mask(logprobs, AllTokens(type="all")).all()


def test_value_rollouts_are_never_trained():
    tree = chain(first_cut_at_prompt=True)
    params = TREE.model_copy(
        update={"value": CreditParams.model_validate(TREE.model_dump() | {"value": {"type": "monte_carlo"}}).value}
    )
    credit = assign_credit(tree, params)
    for node, mask in zip(tree.nodes, credit.masks, strict=True):
        assert node.trainable or not mask.any()


def deep_tree(rollouts: bool) -> RolloutTree:
    """Two levels of segments and a leaf on the first; with ``rollouts`` every state has a fan of two."""
    nodes = [Node.prompt([1])]

    def fan(parent: int) -> None:
        if rollouts:
            fans = (Node.sampled(parent, [9], [-1], FinishReason.STOP, trainable=False, reward=r) for r in (1.0, 0.0))
            nodes.extend(fans)

    fan(0)
    nodes.append(Node.sampled(0, [6], [-1], FinishReason.STOP, reward=1.0))
    for _ in range(2):
        nodes.append(Node.sampled(0, [4 + len(nodes)], [-1], FinishReason.SEGMENT))
        parent = len(nodes) - 1
        fan(parent)
        nodes.extend(Node.sampled(parent, [2], [-1], FinishReason.STOP, reward=r) for r in (1.0, 0.0))
    return RolloutTree("q", tuple(nodes))


SHAPES = {
    "flat": lambda: group([1.0, 0.0, 1.0]),
    "deep": lambda: deep_tree(rollouts=False),
    "deep with rollouts": lambda: deep_tree(rollouts=True),
    "chain": lambda: chain(first_cut_at_prompt=True),
    "chain, prompt not valued": lambda: chain(first_cut_at_prompt=False),
}
PARTITIONS = ("fixed_tokens", "cutpoints", "equal_parts", "delimiter", "entropy", "whole")
VALUES = ("tree_mean", "monte_carlo", "adaptive_monte_carlo", "none")
ADVANTAGES = ("difference", "leave_one_out", "group_normalized", "best_of_k_progress", "rejection")
MORE = {"fixed_tokens": {"tokens": 4}, "equal_parts": {"parts": 2}, "entropy": {"threshold": 1.0}}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_every_choice_gives_numbers_or_says_what_to_do(shape, value, advantage):
    """Refused are exactly the trees that have no value for a state between prompt and end, and in these words."""
    tree = SHAPES[shape]()
    needs = {"none": {"deep", "deep with rollouts", "chain", "chain, prompt not valued"}, "tree_mean": set()}
    for partition in PARTITIONS:
        params = CreditParams.model_validate(
            {
                "partition": {"type": partition} | MORE.get(partition, {}),
                "value": {"type": value},
                "advantage": {"type": advantage},
                "mask": {"type": "all"},
            }
        )
        if shape not in needs.get(value, {"deep"}):
            credit = assign_credit(tree, params)
            assert all(np.isfinite(a).all() for a in credit.advantages)
            continue
        with pytest.raises(TrainingError) as refusal:
            assign_credit(tree, params)
        words = str(refusal.value)
        why = "compares whole responses" if value == "none" else "no value rollouts (children with trainable false) "
        assert why in words and "choose credit.value tree_mean" in words and "nan" not in words
        assert "question 'q', node " in words


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_ungraded_response_is_named(shape, value):
    tree = SHAPES[shape]()
    leaf = next(i for i in reversed(tree.leaves) if tree.nodes[i].trainable)
    params = CreditParams.model_validate(TREE.model_dump() | {"value": {"type": value}})
    with pytest.raises(TrainingError, match=f"^tree of question 'q', node {leaf} ends a response and has no reward"):
        assign_credit(with_rewards(tree, {leaf: math.nan}), params)


@pytest.mark.parametrize("value", ["tree_mean", "monte_carlo", "adaptive_monte_carlo"])
def test_an_ungraded_value_rollout_is_named(value):
    """Its state would have no value, and the segment behind it silently no advantage."""
    tree = chain(first_cut_at_prompt=True)
    params = CreditParams.model_validate(TREE.model_dump() | {"value": {"type": value}})
    with pytest.raises(TrainingError, match="node 1 ends a response and has no reward"):
        assign_credit(with_rewards(tree, {1: math.nan}), params)


def test_credit_round_trip_and_mismatch(tmp_path):
    rng = np.random.default_rng(0)
    trees = [random_tree(rng, depth=3, widest=3, longest=4) for _ in range(3)]
    credits = [assign_credit(t, TREE) for t in trees]
    write_credits(tmp_path / "c.parquet", trees, credits)
    for a, b in zip(credits, read_credits(tmp_path / "c.parquet", trees), strict=True):
        assert np.array_equal(a.values, b.values, equal_nan=True)
        assert all(np.array_equal(x, y) for x, y in zip(a.advantages + a.masks, b.advantages + b.masks, strict=True))
    with pytest.raises(DataError, match="assign credit again"):
        read_credits(tmp_path / "c.parquet", trees[::-1])
