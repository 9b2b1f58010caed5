"""A rollout worker samples and grades: each response is decoded and graded once, when its question has settled."""

from __future__ import annotations

from collections import Counter

import pytest

from spo_core.rollout.decoding import make_decode
from spo_core.train import sampling
from spo_core.train.opening import open_session
from spo_core.train.steps import credit_step, rollout_step, train_step, validate
from spo_core.verify.reward import Rewards
from tests.invariants.test_training_runs import GRADE, grade_by_length, prepared, small

THREE = "rollout.branch_factors=[3]"
SHAPES = {
    "tree": (None, ()),
    "grpo": ("grpo", (THREE,)),
    "monte carlo": ("spo-chain", (THREE,)),
    "adaptive": ("spo-chain", (THREE, "credit.value={type: adaptive_monte_carlo, prompt: always}")),
    "format bonus": ("grpo", (THREE, "verify.reward=[{type: outcome}, {type: format, pattern: x, bonus: 0.1}]")),
}


@pytest.mark.parametrize(("preset", "overrides"), SHAPES.values(), ids=SHAPES)
def test_each_response_is_decoded_and_graded_once(preset, overrides, tmp_path, policy, tokenizer, monkeypatch):
    paths = prepared(tmp_path, policy, tokenizer, monkeypatch)
    decoded: Counter[bytes] = Counter()
    graded: Counter[str] = Counter()
    rewarded: Counter[tuple[str, str]] = Counter()
    decode, rewards = make_decode(tokenizer), Rewards.__call__

    def counted_decode(ids):
        decoded[ids.tobytes()] += 1
        return decode(ids)

    def counted_grade(verifier, problem, answers, grader=None):
        graded.update(text for text, _ in answers)
        return grade_by_length(verifier, problem, answers)

    def counted_rewards(self, responses):
        rewarded.update((r.question.question_id, r.completion) for r in responses)
        return rewards(self, responses)

    monkeypatch.setattr(sampling, "make_decode", lambda _: counted_decode)
    monkeypatch.setattr(GRADE, counted_grade)
    monkeypatch.setattr(Rewards, "__call__", counted_rewards)
    with open_session(small(*overrides, preset=preset), paths) as session:
        rollout_step(session, 1)
        assert session.under_way
        leaves = [(tree, leaf) for tree in session.under_way.trees for leaf in tree.leaves]
        texts = [decode(tree.completion(leaf)) for tree, leaf in leaves]
        assert decoded == Counter(tree.completion(leaf).tobytes() for tree, leaf in leaves)
        assert graded == Counter(texts)
        assert rewarded == Counter((tree.question_id, text) for (tree, _), text in zip(leaves, texts, strict=True))
        for (tree, leaf), text in zip(leaves, texts, strict=True):
            assert tree.nodes[leaf].outcome == ("correct" if len(text) % 2 == 0 else "wrong")
        validate(session, 1)
        assert graded.total() == len(leaves) + len(session.validation)


def test_a_response_that_was_cut_off_is_not_decoded_where_it_is_not_graded(tmp_path, policy, tokenizer, monkeypatch):
    paths = prepared(tmp_path, policy, tokenizer, monkeypatch)
    decode, decoded = make_decode(tokenizer), []
    monkeypatch.setattr(sampling, "make_decode", lambda _: lambda ids: decoded.append(ids) or decode(ids))
    with open_session(small(THREE, "rollout.truncated=zero", preset="grpo"), paths) as session:
        rollout_step(session, 1)
        assert session.under_way
        outcomes = Counter(tree.nodes[leaf].outcome for tree in session.under_way.trees for leaf in tree.leaves)
    assert outcomes["truncated"] and outcomes.total() > outcomes["truncated"]
    assert len(decoded) == outcomes.total() - outcomes["truncated"]


def test_the_policy_version_of_all_trees_counts_optimizer_steps(tmp_path, policy, tokenizer, monkeypatch):
    with open_session(small(), prepared(tmp_path, policy, tokenizer, monkeypatch)) as session:
        for iteration in (1, 2):
            assert session.trainer.step == 2 * (iteration - 1)
            rollout_step(session, iteration)
            assert session.under_way
            validated = session.sample(session.validation, iteration, validation=True).trees
            assert {tree.policy_version for tree in (*session.under_way.trees, *validated)} == {session.trainer.step}
            credit_step(session, iteration)
            train_step(session, iteration)
