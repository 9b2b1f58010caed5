"""The shape of credit, counted by hand on one tree, and by a loop on random ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from spo_core.analysis.shape import PERCENTILES, Spread, shape
from spo_core.credit import Credit, assign_credit
from spo_core.tree import FinishReason, Node, RolloutTree
from tests.conftest import random_tree

NO_CUTS = np.zeros(0)


def segment(parent: int, ids: list[int], first: float, reward: float | None = None, **more) -> Node:
    """Its first token was sampled with probability ``first``, the others with a half."""
    finish = FinishReason.SEGMENT if reward is None else FinishReason.STOP
    own = {} if reward is None else {"reward": reward, "outcome": "correct" if reward else "wrong"}
    return Node.sampled(parent, ids, np.log([first] + [0.5] * (len(ids) - 1)), finish, **own, **more)


TREE = RolloutTree(
    "q",
    (
        Node.prompt([1, 1]),
        segment(0, [5, 6], 0.4),  # 1: the same tokens as 2
        segment(0, [5, 6], 0.4),  # 2
        segment(0, [7], 0.2, 1.0),  # 3
        segment(1, [8, 8, 8], 0.3, 1.0),  # 4
        segment(1, [9], 0.6, 0.0),  # 5
        segment(2, [8, 9], 0.7, 1.0),  # 6: an only child
        segment(1, [9, 9], 0.1, 0.0, trainable=False),  # 7: a value rollout
    ),
)


def credit(advantages: list[float], masked: tuple[int, ...] = ()) -> Credit:
    nodes = TREE.nodes
    return Credit(
        np.array([math.nan, 0.5, 0.25, 1, 1, 0, 1, 0]),
        tuple(np.full(len(n.token_ids), a, np.float32) for n, a in zip(nodes, [0, *advantages, 0], strict=True)),
        tuple(np.full(len(n.token_ids), n.trainable and i not in masked) for i, n in enumerate(nodes)),
    )


def test_counted_by_hand():
    """Segments 1 and 6 change nothing, 5 is masked; so the group below 1 has one that counts."""
    found = shape([(TREE, credit([0, -0.5, 0.25, 0.5, -0.5, 0], masked=(5,)))], NO_CUTS)
    assert found.silent_segments == 3 / 6 and found.silent_tokens == pytest.approx(1 - (2 + 1 + 3) / 11)
    assert found.silent_groups == 0 and found.equal_siblings == 2 / 5
    assert found.advantages == Spread.of([-0.5, 0.25, 0.5]) and found.values == Spread.of([0.5, 0.25, 1, 1, 0, 1])
    assert found.cut_probability.count == 3 and found.cut_probability.mean == pytest.approx((0.3 + 0.6 + 0.7) / 3)
    assert found.segment_tokens == Spread.of([2, 2, 1, 3, 1, 2])
    below_one = shape([(TREE, credit([1, 1, 1, 0, 0, 1]))], NO_CUTS)
    assert below_one.silent_groups == 1 / 2 and below_one.silent_segments == 2 / 6


def test_what_there_is_none_of_is_no_number():
    alone = RolloutTree("q", (Node.prompt([1]), segment(0, [5], 0.5, 1.0)))
    found = shape([(alone, Credit(np.array([math.nan, 1.0]), (np.zeros(1),) * 2, (np.zeros(1, bool),) * 2))], NO_CUTS)
    assert math.isnan(found.silent_groups) and math.isnan(found.equal_siblings)
    assert found.cut_probability == found.advantages or found.cut_probability.percentiles == ()
    assert found.advantages.count == 0 and found.silent_segments == found.silent_tokens == 1


def test_a_spread_is_numpy_s_and_leaves_out_what_is_not_finite():
    values = np.random.default_rng(0).normal(size=31)
    found = Spread.of([*values, math.nan, math.inf])
    assert found.percentiles == pytest.approx(np.percentile(values, PERCENTILES))
    assert found.mean == pytest.approx(values.mean()) and found.count == 31


def test_shares_of_random_trees_are_those_of_a_loop(params):
    rng = np.random.default_rng(1)
    trees = [random_tree(rng, depth=3, widest=4, longest=2, vocabulary=5) for _ in range(20)]
    pairs = [(tree, assign_credit(tree, params.credit)) for tree in trees]
    found = shape(pairs, NO_CUTS)
    counted, tokens, equal = [], [], []
    for tree, own in pairs:
        for i, node in list(enumerate(tree.nodes))[1:]:
            effect = own.masks[i] * (own.advantages[i] != 0)
            counted.append(not effect.any())
            tokens += (~effect.astype(bool)).tolist()
            siblings = [c for c in tree.children[node.parent] if c != i]
            if siblings:
                equal.append(any(np.array_equal(tree.nodes[c].token_ids, node.token_ids) for c in siblings))
    assert found.silent_segments == pytest.approx(np.mean(counted)) and 0 < found.silent_segments < 1
    assert found.silent_tokens == pytest.approx(np.mean(tokens))
    assert found.equal_siblings == pytest.approx(np.mean(equal)) and found.equal_siblings > 0
