"""Every segment is trained at most once, and none vanishes without being counted."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_core.config import CreditParams, LearnParams
from spo_core.credit import Credit, assign_credit, pruned_pair
from spo_core.learn.objective import counted_masks, episodes_of
from spo_core.learn.replay import ReplayBuffer, segments
from spo_core.tree import FinishReason, Node, RolloutTree
from tests.conftest import random_tree, with_rewards

CREDIT = CreditParams(
    partition={"type": "fixed_tokens", "tokens": 4},
    value={"type": "tree_mean"},
    advantage={"type": "difference"},
    mask={"type": "low_probability", "threshold": 0.9},
)


def buffer(**replay) -> ReplayBuffer:
    return ReplayBuffer(LearnParams.model_validate({"learning_rate": 1e-3, "replay": replay}))


def sample(rng: np.random.Generator, iteration: int, questions: int = 3):
    """Trees of tokens that name the segment, since a drawn tree has fewer nodes than it was sampled with."""
    trees = []
    for question in range(questions):
        nodes = random_tree(rng, depth=3, widest=3, longest=4).nodes
        named = [replace(node, token_ids=np.full(len(node.token_ids), i, np.int32)) for i, node in enumerate(nodes)]
        trees.append(RolloutTree(f"q{question}", tuple(named), iteration=iteration))
    return trees, [assign_credit(tree, CREDIT) for tree in trees]


def keys(pairs) -> list[tuple]:
    return [(t.iteration, t.question_id, name(t, node)) for t, credit in pairs for node in segments(credit.masks)]


def name(tree: RolloutTree, node: int) -> int:
    return int(tree.nodes[node].token_ids[0])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    max_age=st.integers(1, 4),
    per_question=st.none() | st.integers(1, 8),
    limit=st.none() | st.integers(1, 20),
    unit=st.sampled_from(["siblings", "segments"]),
    rule=st.sampled_from(["fresh", "reference"]),
)
def test_used_at_most_once_and_all_accounted_for(seed, max_age, per_question, limit, unit, rule):
    rng = np.random.default_rng(seed)
    replay = buffer(max_age=max_age, per_question=per_question, segments=limit, unit=unit, rule=rule)
    added = expired = 0
    used: list[tuple] = []
    for iteration in range(1, 6):
        added += replay.add(*sample(rng, iteration))
        drawn, counts = replay.draw(iteration, rng)
        used += keys(drawn)
        expired += counts["expired"] + counts.get("discarded", 0)
        ages = [iteration - key[0] for key in keys(drawn)]
        if ages:
            assert (counts["age_mean"], counts["age_max"]) == (pytest.approx(np.mean(ages)), max(ages))
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
    assert counts == {"drawn": added, "expired": 0, "waiting": 0, "age_mean": 0, "age_max": 0} and not replay.entries
    trained = [(t, [i for i in range(len(t.nodes)) if c.trains(i)]) for t, c in zip(trees, credits, strict=True)]
    assert keys(drawn) == [(t.iteration, t.question_id, node) for t, nodes in trained for node in nodes]


def test_siblings_are_drawn_together():
    rng = np.random.default_rng(1)
    replay = buffer(per_question=4, max_age=8)
    for iteration in range(1, 9):
        replay.add(*sample(rng, iteration))
        before = {(t.iteration, t.question_id): {name(t, i) for i in segments(c.masks)} for t, c in replay.entries}
        for tree, credit in replay.draw(iteration, rng)[0]:
            drawn = {name(tree, i) for i in segments(credit.masks)}
            for children in tree.children:
                group = {name(tree, c) for c in children} & before[tree.iteration, tree.question_id]
                assert not group & drawn or group <= drawn


def test_drawn_masks_are_those_that_were_added():
    rng = np.random.default_rng(2)
    trees, credits = sample(rng, 1)
    replay = buffer(segments=5, max_age=9, unit="segments")
    replay.add(trees, credits)
    seen = [tuple(np.zeros_like(m) for m in credit.masks) for credit in credits]
    for iteration in range(1, 10):
        for tree, credit in replay.draw(iteration, rng)[0]:
            at = next(i for i, t in enumerate(trees) if t.question_id == tree.question_id)
            for index in segments(credit.masks):
                original = name(tree, index)
                assert np.array_equal(credit.advantages[index], credits[at].advantages[original])
                assert [int(tree.nodes[i].token_ids[0]) for i in tree.path(index)] == trees[at].path(original)
                assert np.array_equal(tree.completion(index), trees[at].completion(original))
                seen[at][original][:] |= credit.masks[index]
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


def test_what_is_not_needed_is_not_kept_but_siblings_are_counted():
    """Value rollouts go. Siblings stay as one token, so that the episodes are the same."""
    rng = np.random.default_rng(5)
    for _ in range(30):
        (tree,), (credit,) = sample(rng, 1, questions=1)
        nodes = list(tree.nodes)
        for parent in range(len(tree.nodes)):
            if tree.children[parent]:
                nodes += [Node.sampled(parent, [7] * 9, [-0.5] * 9, FinishReason.STOP, trainable=False, reward=1.0)] * 3
        whole = RolloutTree("q", tuple(nodes), iteration=1)
        credits = replace(
            credit,
            values=np.zeros(len(nodes)),
            masks=(*credit.masks, *(np.zeros(9, bool) for _ in nodes[len(tree.nodes) :])),
            advantages=(*credit.advantages, *(np.zeros(9, np.float32) for _ in nodes[len(tree.nodes) :])),
        )
        trained = [i for i in segments(counted_masks(credit, buffer().params)) if rng.random() < 0.3]
        smaller, kept = pruned_pair(whole, credits, trained)
        needed = {i for node in trained for i in tree.path(node)} | {0}
        assert all(node.trainable for node in smaller.nodes[1:])
        for index, node in enumerate(smaller.nodes[1:], start=1):
            whole_node = name(smaller, index) in needed
            assert len(node.token_ids) == (len(tree.nodes[name(smaller, index)].token_ids) if whole_node else 1)
        episodes = [
            [sorted(name(t, n) for n in episode.nodes) for episode in episodes_of(0, t, masks)]
            for t, masks in ((smaller, kept.masks), (whole, only(credits, trained)))
        ]
        assert episodes[0] == episodes[1]


def only(credit, nodes):
    return tuple(m if i in nodes else np.zeros_like(m) for i, m in enumerate(credit.masks))


QUESTIONS, SEGMENTS, PER_QUESTION, AGE = 16, 132, 32, 8  # of an iteration; non-zero segments a question (published)


def published_rule(iterations: int, cap: int, rng) -> list[list[int]]:
    """Ages of what is trained, by the reference's own steps (docs/reference.md 1.3): add, drop the old,
    sample up to 32 a question and remove them, keep a random ``cap`` of these."""
    waiting: list[tuple[int, int]] = []  # (question, born)
    trained = []
    for now in range(iterations):
        waiting += [(now * QUESTIONS + q, now) for q in range(QUESTIONS) for _ in range(SEGMENTS)]
        waiting = [edge for edge in waiting if now - edge[1] < AGE]
        sampled = []
        for question in dict.fromkeys(q for q, _ in waiting):
            own = [edge for edge in waiting if edge[0] == question]
            some = min(PER_QUESTION, len(own))
            sampled += own[:some]  # edges of one question and iteration are alike here
            waiting = [edge for edge in waiting if edge[0] != question] + own[some:]
        trained.append([now - sampled[i][1] for i in rng.permutation(len(sampled))[:cap]])
    return trained


def ours(iterations: int, rule: str, cap: int, rng) -> list[list[int]]:
    replay = buffer(max_age=AGE, per_question=PER_QUESTION, segments=cap, unit="segments", rule=rule)
    trained = []
    for now in range(1, iterations + 1):
        for question in range(QUESTIONS):
            leaf = Node.sampled(0, [1], [-1.0], FinishReason.STOP, reward=0.0)
            tree = RolloutTree(f"{now}-{question}", (Node.prompt([1]), *[leaf] * SEGMENTS), iteration=now)
            tokens = (np.zeros(1, np.float32), *[np.ones(1, np.float32)] * SEGMENTS)
            replay.add([tree], [Credit(np.zeros(SEGMENTS + 1), tokens, tuple(a > 0 for a in tokens))])
        drawn, _ = replay.draw(now, rng)
        trained.append([now - iteration for iteration, _, _ in keys(drawn)])
    return trained


@pytest.mark.slow
@pytest.mark.parametrize("cap", [512, 1024])
def test_ages_are_those_of_the_published_rule_or_fresher(cap):
    """132 non-zero segments a question, 32 drawn: the published rule trains segments of 1.6 iterations' age on average
    (a question lasts 132 / 32 draws), ours those of this iteration as far as they go."""
    rng = np.random.default_rng(0)
    expected, reference, fresh = (
        np.concatenate(ages[AGE:])
        for ages in (published_rule(16, cap, rng), ours(16, "reference", cap, rng), ours(16, "fresh", cap, rng))
    )
    assert len(expected) == len(reference) == len(fresh) == 8 * cap
    assert expected.mean() == pytest.approx(1.58, abs=0.05)
    counts = [np.bincount(ages, minlength=AGE) / len(ages) for ages in (expected, reference)]
    assert counts[1] == pytest.approx(counts[0], abs=0.02)
    assert fresh.mean() == (0.0 if cap == 512 else 0.5)


@pytest.mark.parametrize("keep", ["drop", "keep"])
def test_segments_without_advantage_wait_only_where_they_count(keep):
    trees, _ = sample(np.random.default_rng(4), 1)
    equal = [with_rewards(t, dict.fromkeys(t.leaves, 1.0)) for t in trees]
    replay = ReplayBuffer(LearnParams(learning_rate=1e-3, zero_advantage=keep))
    added = replay.add(equal, [assign_credit(t, CREDIT) for t in equal])
    assert (added > 0) == (keep == "keep")
