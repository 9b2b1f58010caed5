"""The rows of metrics: what was not measured is not in them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from spo_core.config import load_params
from spo_core.problems import problem_set
from spo_core.problems.base import Question
from spo_core.rollout.seconds import QuestionSeconds
from spo_core.train.questions import QuestionOrder
from spo_core.train.sampling import Counts, Sampled
from spo_core.train.steps import caches_prefixes, rollout_metrics, rollout_step, validate
from spo_core.tree import FinishReason, Node, RolloutTree
from tests.conftest import ROOT

VLLM = "rollout.engine={type: vllm}"
UNCACHED = "rollout.engine={type: vllm, options: {enable_prefix_caching: false}}"


def graded(*leaves: tuple[FinishReason, str]) -> RolloutTree:
    nodes = [Node.sampled(0, [4, 5], [-1, -1], f, reward=float(o == "correct"), outcome=o) for f, o in leaves]
    return RolloutTree("q", (Node.prompt([1, 2]), *nodes))


def session(tmp_path, *overrides: str, trees: list[RolloutTree]) -> SimpleNamespace:
    counts = Counts(1e-6, 1e-5, 64, 0, 4, 8, 2, 0.1, 0.1, 0.1)
    params = load_params(ROOT, None, (f"rollout.questions={len(trees)}", "learn.optimizer_steps=1", *overrides))
    rows = [Question(f"q{n}", "1+1=?", "2") for n in range(len(trees))]
    return SimpleNamespace(
        params=params,
        problem=problem_set(params.data),
        rows=rows,
        order=QuestionOrder(rows, seed=0),
        validation=rows,
        run=SimpleNamespace(start_iteration=lambda number: tmp_path, iteration=lambda number: tmp_path),
        sample=lambda *_, **__: Sampled(trees, counts, [QuestionSeconds(tree.question_id, 0.5, 0.1) for tree in trees]),
    )


@pytest.mark.parametrize(
    ("overrides", "measured"),
    [
        ((), {"rollout/cache_hit_rate"}),
        ((VLLM,), {"rollout/cache_hit_rate", "rollout/engine_restarts"}),
        ((UNCACHED,), {"rollout/engine_restarts"}),
    ],
)
def test_an_engine_is_asked_for_what_it_has_alone(overrides, measured, tmp_path):
    rollout_step(session(tmp_path, *overrides, trees=[graded((FinishReason.STOP, "correct"))]), 1)
    found = json.loads((tmp_path / "rollout.json").read_text())
    assert found.keys() & {"rollout/cache_hit_rate", "rollout/engine_restarts"} == measured
    assert "rollout/cache_hit_rate" not in measured or found["rollout/cache_hit_rate"] == 0.25


def test_prefix_caching_is_off_where_vllm_is_told_so():
    for written, on in (("enable_prefix_caching: false", False), ("enable-prefix-caching: true", True)):
        params = load_params(ROOT, None, ("rollout.engine={type: vllm, options: {" + written + "}}",))
        assert caches_prefixes(params.rollout.engine) == on


@pytest.mark.parametrize("outcome", ["truncated", "wrong"])
def test_responses_that_were_cut_off_are_counted_whether_or_not_they_are_graded(outcome):
    """``rollout.truncated: grade`` leaves no outcome truncated."""
    metrics = rollout_metrics([graded((FinishReason.LENGTH, outcome), (FinishReason.STOP, "correct"))])
    assert metrics["rollout/truncated_share"] == 0.5


def test_one_question_has_no_standard_error(tmp_path):
    for count, known in ((1, False), (2, True)):
        trees = [graded((FinishReason.STOP, "correct"))] * count
        row = validate(session(tmp_path, trees=trees), 1)
        assert ("eval/validation_standard_error" in row) == known and row["eval/validation_accuracy"] == 1


def test_accuracy_counts_right_responses_whatever_they_are_rewarded_with():
    """Of two first segments one goes on to a right and a wrong response, the other ends right with a penalty."""
    step = Node.sampled(0, [4], [-1], FinishReason.SEGMENT)
    leaves = [
        Node.sampled(1, [5], [-1], FinishReason.STOP, reward=1.0, outcome="correct"),
        Node.sampled(1, [6], [-1], FinishReason.STOP, reward=0.0, outcome="wrong"),
        Node.sampled(0, [7], [-1], FinishReason.STOP, reward=0.4, outcome="correct"),
        Node.sampled(0, [8], [-1], FinishReason.STOP, reward=0.0, outcome="wrong", trainable=False),
    ]
    metrics = rollout_metrics([RolloutTree("q", (Node.prompt([1, 2]), step, *leaves))])
    assert metrics["rollout/accuracy"] == (0.5 + 1) / 2 and metrics["rollout/reward"] == pytest.approx((0.5 + 0.4) / 2)
