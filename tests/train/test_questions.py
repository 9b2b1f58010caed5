"""The order of questions: an epoch each once, solved ones left out for a while, the same after a resume."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_core.config import SkipSolvedParams
from spo_core.problems.base import Question
from spo_core.rollout.seeds import derive_seed
from spo_core.train.questions import QuestionOrder, all_right, uniform
from spo_core.tree import FinishReason, Node, RolloutTree

ROWS = [Question(f"q{i}", f"{i}", "1") for i in range(7)]


def answered(question_id: str, *right: bool, fan: tuple[bool, ...] = ()) -> RolloutTree:
    """Responses, and value rollouts after the first one's first half."""
    nodes = [Node.prompt([3]), Node.sampled(0, [4], [-1.0], FinishReason.SEGMENT)]
    for parent, answers, trainable in ((1, right[:1], True), (0, right[1:], True), (1, fan, False)):
        for correct in answers:
            node = Node.sampled(parent, [5], [-1.0], FinishReason.STOP, trainable=trainable)
            nodes.append(node.graded(float(correct), "correct" if correct else "wrong"))
    return RolloutTree(question_id, tuple(nodes))


def test_what_is_solved_and_what_says_nothing():
    assert all_right(answered("q", True, True, fan=(False,))) and not all_right(answered("q", True, False))
    assert uniform(answered("q", True, True)) and uniform(answered("q", False, False, fan=(False,)))
    assert not uniform(answered("q", True, True, fan=(False,))) and not uniform(answered("q", False, True))


@given(st.integers(1, 9), st.integers(0, 5), st.integers(1, 12))
def test_without_further_params_the_order_is_a_function_of_the_iteration(count, seed, iteration):
    order = QuestionOrder(ROWS, seed)
    for number in range(1, iteration + 1):
        found = order.draw(count, number)
    expected = []
    for position in range((iteration - 1) * count, iteration * count):
        epoch, place = divmod(position, len(ROWS))
        rng = np.random.default_rng(derive_seed(seed, "questions", epoch))
        expected.append(ROWS[rng.permutation(len(ROWS))[place]])
    assert found == expected == QuestionOrder(ROWS, seed, position=(iteration - 1) * count).draw(count, iteration)


@settings(deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5))
def test_solved_questions_come_back_later_and_a_resume_changes_nothing(data, count, after, iterations):
    """Against a plain history of who was solved when: nobody is asked who should be left out, unless all are; the state
    as JSON, taken at any moment, gives the same questions."""
    skip = SkipSolvedParams(after=after, iterations=iterations)
    order, history = QuestionOrder(ROWS, 0, skip), {}
    able = data.draw(st.sets(st.sampled_from([row.question_id for row in ROWS])))
    for number in range(1, 25):
        again = QuestionOrder(ROWS, 0, skip)
        again.restore(json.loads(json.dumps(order.state)))
        drawn = order.draw(count, number)
        assert again.draw(count, number) == drawn and len(drawn) == count
        out = {
            q
            for q, seen in history.items()
            if len(seen) >= after and all(ok for _, ok in seen[-after:]) and number - seen[-1][0] < iterations
        }
        assert out == {row.question_id for row in ROWS if order.left_out(row.question_id, number)}
        found = {row.question_id for row in drawn}
        assert len(found) == count and (not out & found or {row.question_id for row in ROWS} - out <= found)
        further = order.draw(3, number, without={row.question_id for row in drawn})
        asked = [row.question_id for row in drawn + further]
        assert len(set(asked)) == len(asked)
        assert len(further) == min(3, sum(r.question_id not in out | found for r in ROWS))
        trees = [answered(q, q in able, q in able) for q in dict.fromkeys(asked)]
        order.learn(trees, number)
        for tree in trees:
            history.setdefault(tree.question_id, []).append((number, all_right(tree)))
    assert able == set() or able & order.solved.keys()
