"""What resampling may add: the estimate against the loop that asks further questions, at costs of any kind."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spo_core.train.resampling as resampling
from spo_core.config import Params, load_params
from spo_core.config.rollout import ResampleParams
from spo_core.estimate.work import UNIFORM, estimate
from tests.conftest import ROOT

CONTEXT, LONGEST, BRANCHES = 40, 10, 3


BASE = load_params(
    ROOT,
    "grpo",
    (
        f"rollout.branch_factors=[{BRANCHES}]",
        f"rollout.max_completion_tokens={LONGEST}",
        f"rollout.context_length={CONTEXT}",
        "learn.optimizer_steps=1",
    ),
)


def chosen(questions: int, budget: int | None, first: int | None = None, base: Params = BASE) -> Params:
    resample = None if budget is None else ResampleParams(max_tokens=budget)
    rollout = base.rollout.model_copy(update={"questions": questions, "resample": resample, "first_children": first})
    return base.model_copy(update={"rollout": rollout})


def asked(params, costs: list[int], says_nothing: list[bool]) -> tuple[int, int]:
    """Questions and tokens of an iteration whose questions cost so much, and whose trees are uniform or not."""
    trees = [
        SimpleNamespace(generated_tokens=cost, leaves=[0], uniform=uniform)
        for cost, uniform in zip(costs, says_nothing, strict=True)
    ]
    waiting = [(SimpleNamespace(question_id=str(i)), tree) for i, tree in enumerate(trees)]
    of = {row.question_id: tree for row, tree in waiting}
    order = SimpleNamespace(
        draw=lambda count, iteration, without=(): [waiting.pop(0)[0] for _ in range(min(count, len(waiting)))],
        learn=lambda *_: None,
    )

    def sample(rows, iteration, progress):
        return SimpleNamespace(trees=[of[row.question_id] for row in rows], counts=None, seconds=[0.0] * len(rows))

    session = SimpleNamespace(params=params, order=order, sample=sample)
    with (
        patch.object(resampling, "uniform", lambda tree: tree.uniform),
        patch.object(resampling, "_one_after_another", lambda counts: None),
    ):
        found = resampling.ask(session, 1)
    return len(found.sampled.trees), sum(tree.generated_tokens for tree in found.sampled.trees)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_iteration_asks_or_samples_more_than_the_most(data):
    """Cheap and dear questions in any order: where the first are cheapest the last may be dearest."""
    questions, budget = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 400))
    first = data.draw(st.sampled_from([None, 2]))
    fewest = first or BRANCHES  # of responses
    cost = st.integers(fewest, BRANCHES * LONGEST) | st.sampled_from([fewest, BRANCHES * LONGEST])
    cheap = data.draw(st.integers(0, 200))
    costs = [fewest] * cheap + data.draw(st.lists(cost, min_size=1, max_size=20)) + [BRANCHES * LONGEST] * 200
    says_nothing = data.draw(st.lists(st.booleans(), max_size=12)) + [True] * len(costs)
    params = chosen(questions, budget, first)
    found = estimate(params, CONTEXT)
    count, tokens = asked(params, costs, says_nothing[: len(costs)])
    assert count <= found.asked[1] and tokens <= found.most.generated_tokens


@pytest.mark.parametrize("first", [None, 2])
def test_the_most_is_reached(first):
    """By the cheapest questions in number; in tokens where the last round begins once these left room for it alone."""
    fewest = first or BRANCHES
    params = chosen(4, 28 * fewest, first)
    found = estimate(params, CONTEXT)
    assert asked(params, [fewest] * 100, [True] * 100)[0] == found.asked[1] == 28
    dear = [fewest] * 24 + [BRANCHES * LONGEST] * 76
    assert asked(params, dear, [True] * 100)[1] == found.most.generated_tokens


def test_a_prover_samples_for_those_asked_in_place_of_others_too():
    """As much for each question; at the most no more than all that is sampled."""
    base = load_params(ROOT, "pav", ("rollout.questions=4", "learn.optimizer_steps=1"))
    context = base.rollout.context_length
    once, more = (estimate(chosen(4, budget, base=base), context) for budget in (None, 10**6))
    assert once.expected.prover_tokens > 0 and more.asked[0] == 8
    assert more.expected.prover_tokens == 2 * once.expected.prover_tokens
    assert once.most.prover_tokens < more.most.prover_tokens <= more.most.generated_tokens


def test_what_is_expected_follows_from_the_share_that_says_nothing_and_the_budget():
    once = estimate(chosen(4, None), CONTEXT)
    assert once.asked == (4, 4)
    each = once.expected.generated_tokens // 4
    for budget, count in ((1, 4), (5 * each, 5), (10**6, round(4 / (1 - UNIFORM)))):
        found = estimate(chosen(4, budget), CONTEXT)
        assert found.asked[0] == count <= found.asked[1]
        assert found.expected.generated_tokens == count * each <= found.most.generated_tokens
        assert found.expected.responses == count * BRANCHES
        trained = ("episodes", "forwarded_tokens", "flat_tokens")
        assert all(getattr(found.expected, name) == getattr(once.expected, name) for name in trained)
