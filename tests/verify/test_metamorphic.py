"""Answers made as trees: every notation of one is equal to every other, and one change anywhere makes it another."""

import random
from collections import Counter

import pytest

from spo_core.verify.outcome import Outcome
from spo_core.verify.pool import WorkerPool
from tests.verify import trees

SOME, MANY = 500, 20_000


def equal_pairs(count: int, seed: int) -> list[tuple[str, str, str]]:
    """(given, gold, kind): one tree in two notations, or simplified by sympy."""
    rng = random.Random(seed)
    pairs = []
    while len(pairs) < count:
        tree = trees.answer(rng)
        if not trees.is_defined(tree):
            continue
        simpler = trees.simplified(tree, rng) if tree[0] not in trees.KINDS and rng.random() < 0.4 else None
        kind = "simplified" if simpler else tree[0] if tree[0] in trees.KINDS else "scalar"
        pairs.append((trees.show(tree, rng), simpler or trees.show(tree, rng), kind))
    return pairs


def unequal_pairs(count: int, seed: int) -> list[tuple[str, str, str]]:
    """(given, gold, change): a tree and one that differs from it in one place, and in value."""
    rng = random.Random(seed)
    pairs: list[tuple[str, str, str]] = []
    while len(pairs) < count:
        tree = trees.answer(rng)
        change = trees.changed(tree, rng) if trees.is_defined(tree) else None
        if change and trees.is_defined(change[1]) and not trees.same(tree, change[1]):
            pairs.append((trees.show(change[1], rng), trees.show(tree, rng), change[0]))
    return pairs


def judge(pairs, equal):
    """Pairs judged otherwise than ``equal``, and how many there were of each kind."""
    pool = WorkerPool(2, 20.0)
    try:
        outcomes = pool.compare([("math", given, gold) for given, gold, _ in pairs])
    finally:
        pool.close()
    wrong = [pair for pair, outcome in zip(pairs, outcomes, strict=True) if (outcome is Outcome.CORRECT) is not equal]
    print(Counter(kind for _, _, kind in pairs), "wrong:", Counter(kind for _, _, kind in wrong))
    return wrong


@pytest.mark.parametrize("count", [SOME, pytest.param(MANY, marks=pytest.mark.exhaustive)])
def test_one_answer_in_two_notations_is_the_same_answer(count):
    assert judge(equal_pairs(count, seed=count), equal=True) == []


@pytest.mark.parametrize("count", [SOME, pytest.param(MANY, marks=pytest.mark.exhaustive)])
def test_one_change_makes_another_answer(count):
    assert judge(unequal_pairs(count, seed=count), equal=False) == []


def test_all_kinds_and_changes_are_there():
    assert {kind for _, _, kind in equal_pairs(SOME, 0)} == {*trees.KINDS, "scalar", "simplified"}
    assert len({change for _, _, change in unequal_pairs(SOME, 0)}) >= 9
