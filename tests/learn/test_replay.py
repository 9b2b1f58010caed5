"""Every segment is trained at most once, and none vanishes without being counted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_core.config import CreditParams, LearnParams
from spo_core.credit import assign_credit
from spo_core.learn.replay import ReplayBuffer, segments
from spo_core.tree import RolloutTree
from tests.conftest import random_tree

CREDIT = CreditParams(
    partition={"type": "fixed_tokens", "tokens": 4},
    value={"type": "tree_mean"},
    advantage={"type": "difference"},
    mask={"type": "low_probability", "threshold": 0.9},
)


def buffer(**replay) -> ReplayBuffer:
    return ReplayBuffer(LearnParams.model_validate({"learning_rate": 1e-3, "replay": replay}))


def sample(rng: np.random.Generator, iteration: int, questions: int = 3):
    trees = []
    for question in range(questions):
        tree = random_tree(rng, depth=3, widest=3, longest=4)
        trees.append(RolloutTree(f"q{question}", tree.nodes, iteration=iteration))
    return trees, [assign_credit(tree, CREDIT) for tree in trees]


def keys(pairs) -> list[tuple]:
    return [(tree.iteration, tree.question_id, node) for tree, credit in pairs for node in segments(credit.masks)]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    max_age=st.integers(1, 4),
    per_question=st.none() | st.integers(1, 8),
    limit=st.none() | st.integers(1, 20),
    unit=st.sampled_from(["siblings", "segments"]),
)
def test_used_at_most_once_and_all_accounted_for(seed, max_age, per_question, limit, unit):
    rng = np.random.default_rng(seed)
    replay = buffer(max_age=max_age, per_question=per_question, segments=limit, unit=unit)
    added = expired = 0
    used: list[tuple] = []
    for iteration in range(1, 6):
        added += replay.add(*sample(rng, iteration))
        drawn, counts = replay.draw(iteration, rng)
        used += keys(drawn)
        expired += counts["expired"]
        assert counts["drawn"] == len(keys(drawn)) and counts["waiting"] == replay.waiting
        assert all(iteration - tree.iteration < max_age for tree, _ in drawn)
        assert added == len(used) + expired + replay.waiting
        per = [sum(key[1] == f"q{q}" for key in keys(drawn)) for q in range(3)]
        if unit == "segments":
            assert per_question is None or max(per) <= per_question
            assert limit is None or counts["drawn"] <= limit
    assert len(used) == len(set(used))


def test_the_default_trains_what_was_just_sampled():
    rng = np.random.default_rng(0)
    trees, credits = sample(rng, 1)
    replay = buffer()
    added = replay.add(trees, credits)
    drawn, counts = replay.draw(1, rng)
    assert counts == {"drawn": added, "expired": 0, "waiting": 0} and not replay.entries
    assert [t for t, _ in drawn] == [
        t for t, c in zip(trees, credits, strict=True) if any(map(c.trains, range(len(t.nodes))))
    ]


def test_siblings_are_drawn_together():
    rng = np.random.default_rng(1)
    replay = buffer(per_question=4, max_age=8)
    for iteration in range(1, 9):
        replay.add(*sample(rng, iteration))
        before = {(t.iteration, t.question_id): segments(c.masks) for t, c in replay.entries}
        for tree, credit in replay.draw(iteration, rng)[0]:
            drawn = set(segments(credit.masks))
            for children in tree.children:
                group = {c for c in children if c in before[tree.iteration, tree.question_id]}
                assert not group & drawn or group <= drawn


def test_drawn_masks_are_those_that_were_added():
    rng = np.random.default_rng(2)
    trees, credits = sample(rng, 1)
    replay = buffer(segments=5, max_age=9, unit="segments")
    replay.add(trees, credits)
    seen = [tuple(np.zeros_like(m) for m in credit.masks) for credit in credits]
    for iteration in range(1, 10):
        for tree, credit in replay.draw(iteration, rng)[0]:
            at = next(i for i, t in enumerate(trees) if t is tree)
            seen[at] = tuple(a | b for a, b in zip(seen[at], credit.masks, strict=True))
    for masks, credit in zip(seen, credits, strict=True):
        for index, mask in enumerate(masks):
            wanted = credit.masks[index] & (credit.advantages[index] != 0)
            assert not mask.any() or np.array_equal(mask, credit.masks[index])
            assert mask.any() == wanted.any()


def test_saved_and_loaded_it_draws_the_same(tmp_path):
    rng = np.random.default_rng(3)
    replay = buffer(max_age=3, segments=6)
    replay.add(*sample(rng, 1))
    replay.draw(1, rng)
    replay.save(tmp_path)
    again = buffer(max_age=3, segments=6)
    again.load(tmp_path)
    assert again.waiting == replay.waiting > 0
    trees, credits = sample(rng, 2)
    for one in (replay, again):
        one.add(trees, credits)
    (a, counts), (b, counts_again) = (one.draw(2, np.random.default_rng(7)) for one in (replay, again))
    assert keys(a) == keys(b) and counts == counts_again


def test_an_empty_buffer_is_saved_too(tmp_path):
    buffer().save(tmp_path)
    again = buffer()
    again.load(tmp_path)
    assert again.entries == [] and again.draw(1, np.random.default_rng(0))[0] == []


@pytest.mark.parametrize("keep", ["drop", "keep"])
def test_segments_without_advantage_wait_only_where_they_count(keep):
    trees, _ = sample(np.random.default_rng(4), 1)
    equal = [t.with_rewards({leaf: (1.0, "correct") for leaf in t.leaves}) for t in trees]
    replay = ReplayBuffer(LearnParams(learning_rate=1e-3, zero_advantage=keep))
    added = replay.add(equal, [assign_credit(t, CREDIT) for t in equal])
    assert (added > 0) == (keep == "keep")
