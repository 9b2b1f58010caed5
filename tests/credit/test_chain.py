"""SPO-chain's advantages on worked examples (docs/reference.md 1.1 step 7), and values from shared value rollouts."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_core.config import CreditParams
from spo_core.credit import assign_credit, segment_credit
from spo_core.credit.partition import cutpoints, segment_bounds
from spo_core.credit.value import monte_carlo, shared_monte_carlo
from spo_core.tree import FinishReason, Node, RolloutTree

CHAIN = CreditParams(
    partition={"type": "cutpoints", "prob_threshold": 0.9, "interval": 1},
    value={"type": "monte_carlo", "rollouts": 4},
    advantage={"type": "difference"},
    mask={"type": "all"},
)
WORKED = [0.99, 0.5, 0.99, 0.8, 0.99, 0.7, 0.6, 0.95]


def chain(probabilities: list[float], fans: dict[int, list[int]], reward: float, interval: int = 1) -> RolloutTree:
    """One trajectory cut as SPO-chain cuts it; ``fans`` are the rewards of value rollouts by cutpoint."""
    nodes = [Node.prompt([1])]

    def add_fan(node: int, cut: int) -> None:
        nodes.extend(
            Node.sampled(node, [9], [-1.0], FinishReason.STOP, trainable=False, reward=float(r))
            for r in fans.get(cut, [])
        )

    add_fan(0, -1)
    parent, logprobs = 0, np.log(probabilities)
    for start, stop in segment_bounds(len(probabilities), cutpoints(logprobs, 0.9, interval)):
        last = stop == len(probabilities)
        ids = [3 + t for t in range(start, stop)]
        finish, earned = (FinishReason.STOP, reward) if last else (FinishReason.SEGMENT, math.nan)
        nodes.append(Node.sampled(parent, ids, logprobs[start:stop], finish, reward=earned))
        parent = len(nodes) - 1
        if not last:
            add_fan(parent, stop - 1)
    return RolloutTree("q", tuple(nodes))


def token_advantages(tree: RolloutTree, params: CreditParams = CHAIN) -> list[float]:
    credit = assign_credit(tree, params)
    return np.concatenate([a for a, n in zip(credit.advantages, tree.nodes, strict=True) if n.trainable]).tolist()


def test_worked_example():
    """Cuts 0, 2, 4, 5; values .25, .5, .75, .5; reward 1. Tokens above 0.9 have no advantage."""
    tree = chain(WORKED, {0: [1, 0, 0, 0], 2: [1, 1, 0, 0], 4: [1, 1, 1, 0], 5: [1, 1, 0, 0]}, 1.0)
    assert token_advantages(tree) == pytest.approx([0, 0.25, 0, 0.25, 0, -0.25, 0.5, 0])
    values, advantages = segment_credit(tree, CHAIN)
    spine = [i for i, n in enumerate(tree.nodes) if n.trainable]
    assert values[spine].tolist() == [0.25, 0.5, 0.75, 0.5, 1.0]
    assert advantages[spine].tolist() == [0.0, 0.25, 0.25, -0.25, 0.5]


def test_interval_counts_low_tokens_and_the_last_segment_ends_in_the_true_reward():
    tree = chain(WORKED, {0: [1, 0, 0, 0], 4: [1, 1, 1, 0]}, 0.0, interval=2)
    assert token_advantages(tree) == pytest.approx([0, 0.5, 0, 0.5, 0, -0.75, -0.75, 0])


def test_a_low_first_token_makes_the_prompt_the_base():
    tree = chain([0.5, 0.95, 0.6], {-1: [1, 0, 0, 0], 1: [1, 1, 0, 0]}, 1.0)
    assert token_advantages(tree) == pytest.approx([0.25, 0, 0.5])


def test_a_token_at_exactly_the_threshold_is_neither_low_nor_zeroed():
    probabilities = [0.5, 0.9, 0.91, 0.6]
    assert cutpoints(np.log(probabilities), 0.9, 1) == [-1, 2]
    tree = chain(probabilities, {-1: [0, 0], 2: [1, 0]}, 1.0)
    assert token_advantages(tree) == pytest.approx([0.5, 0.5, 0, 0.5])
    masked = assign_credit(tree, CHAIN.model_copy(update={"mask": LOW}))
    assert [m.tolist() for m, n in zip(masked.masks, tree.nodes, strict=True) if n.trainable] == [
        [True, False, False],
        [True],
    ]


LOW = CreditParams.model_validate(CHAIN.model_dump() | {"mask": {"type": "low_probability", "threshold": 0.9}}).mask


@pytest.mark.parametrize("prompt_value", [[], [1, 0]])
def test_a_response_without_a_low_token_has_no_advantage(prompt_value):
    """Not even where another trajectory had the prompt valued."""
    tree = chain([0.99, 0.9, 0.95], {-1: prompt_value}, 1.0)
    assert token_advantages(tree) == [0, 0, 0]


def random_question(rng: np.random.Generator, responses: int) -> RolloutTree:
    """Responses over two tokens, so that they and their value rollouts often share beginnings."""
    nodes = [Node.prompt([1])]
    length = 5

    def fan(node: int, done: int) -> None:
        for _ in range(int(rng.integers(1, 4))):
            ids = [*rng.integers(3, 5, length - done), 2]
            nodes.append(
                Node.sampled(
                    node, ids, -np.ones(len(ids)), FinishReason.STOP, trainable=False, reward=float(rng.integers(0, 2))
                )
            )

    if rng.random() < 0.5:
        fan(0, 0)
    for _ in range(responses):
        parent, done = 0, 0
        for cut in sorted(rng.choice(np.arange(1, length), 2, replace=False)):
            ids = rng.integers(3, 5, cut - done)
            nodes.append(Node.sampled(parent, ids, -np.ones(len(ids)), FinishReason.SEGMENT))
            parent, done = len(nodes) - 1, int(cut)
            fan(parent, done)
        ids = [*rng.integers(3, 5, length - done), 2]
        nodes.append(Node.sampled(parent, ids, -np.ones(len(ids)), FinishReason.STOP, reward=float(rng.integers(0, 2))))
    return RolloutTree("q", tuple(nodes))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_a_value_is_the_mean_over_the_value_rollouts_of_all_equal_states(seed, responses):
    tree = random_question(np.random.default_rng(seed), responses)
    rewards: dict[tuple, list[float]] = {}
    for index, node in enumerate(tree.nodes):
        if index and not node.trainable:
            rewards.setdefault(tuple(tree.completion(node.parent)), []).append(node.reward)
    for index, value in enumerate(monte_carlo(tree)):
        if tree.children[index]:
            own = rewards.get(tuple(tree.completion(index)))
            assert value == pytest.approx(sum(own) / len(own)) if own else math.isnan(value)
        else:
            assert value == tree.nodes[index].reward


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_it_does_not_matter_which_of_equal_states_have_the_fans(seed, responses):
    tree = random_question(np.random.default_rng(seed), responses)
    first: dict[tuple, int] = {}
    ends = [first.setdefault(tuple(tree.completion(i)), i) for i in range(len(tree.nodes))]
    nodes = [n if i == 0 or n.trainable else replace(n, parent=ends[n.parent]) for i, n in enumerate(tree.nodes)]
    moved = RolloutTree("q", tuple(nodes))
    assert monte_carlo(moved) == pytest.approx(monte_carlo(tree), nan_ok=True)


def naive_shared_value(tree: RolloutTree, node: int) -> float:
    """By definition: the mean over rollouts through the state of the next state's value, or of the reward."""

    def text(index):
        return "".join(map(str, tree.completion(index).tolist()))

    states = {text(i) for i, c in enumerate(tree.children) if c}
    if all(tree.nodes[c].trainable for c in tree.children[0]):
        states.discard("")
    rollouts = [(text(n.parent), text(i), n.reward) for i, n in enumerate(tree.nodes) if i and not n.trainable]

    def value(state):
        met = []
        for begin, whole, reward in rollouts:
            if whole.startswith(state) and state.startswith(begin):
                following = [s for s in states if whole.startswith(s) and len(s) > len(state)]
                met.append(value(min(following, key=len)) if following else reward)
        return sum(met) / len(met)

    return value(text(node))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3))
def test_shared_values_are_their_definition(seed, responses):
    tree = random_question(np.random.default_rng(seed), responses)
    values, own = shared_monte_carlo(tree), monte_carlo(tree)
    assert np.array_equal(np.isnan(values), np.isnan(own))
    for index, node in enumerate(tree.nodes):
        if not tree.children[index]:
            assert values[index] == own[index]
        elif not math.isnan(values[index]):
            assert values[index] == pytest.approx(naive_shared_value(tree, index)), node


def test_equal_states_have_equal_values_though_one_alone_has_a_fan():
    nodes = [Node.prompt([1])]
    for _ in range(2):
        nodes.append(Node.sampled(0, [4], [-1], FinishReason.SEGMENT))
        nodes.append(Node.sampled(len(nodes) - 1, [2], [-1], FinishReason.STOP, reward=1.0))
    nodes += [Node.sampled(1, [2], [-1], FinishReason.STOP, trainable=False, reward=r) for r in (1.0, 0.0, 0.0, 0.0)]
    values = shared_monte_carlo(RolloutTree("q", tuple(nodes)))
    assert math.isnan(values[0]) and values[[1, 3]].tolist() == [0.25, 0.25]
