"""A run values states by the probability of the right answer, under the policy of the moment."""

from __future__ import annotations

import math

import pytest
import torch

from spo_core.credit import read_credits
from spo_core.policy.checkpoint import load_policy
from spo_core.problems.base import read_split
from spo_core.tree import read_trees
from tests.invariants.test_training_runs import prepared, small, train

pytestmark = pytest.mark.slow


def test_values_are_those_of_the_policy_that_sampled_the_trees(tmp_path, policy, tokenizer, monkeypatch):
    """The second iteration's, computed again by plain sequences from the policy after the first one's update."""
    project = prepared(tmp_path, policy, tokenizer, monkeypatch)
    overrides = ("credit.value={type: gold_answer}", "run.iterations=2", "run.checkpoint_every=1")
    params = small(*overrides)
    _, _, path = train(params, project)
    trees = read_trees(path / "iterations" / "000002" / "trees.parquet")
    credits = read_credits(path / "iterations" / "000002" / "credits.parquet", trees)
    policy, tokenizer = load_policy(path / "checkpoints" / "000001" / "policy")
    answers = {row.question_id: row.answer for row in read_split(project.data("arithmetic"), "train")}
    states = 0
    for tree, credit in zip(trees, credits, strict=True):
        end = [*tokenizer.encode("\n#### " + answers[tree.question_id]), tokenizer.eos_token_id]
        scored = len(end) - len(tokenizer.encode("\n#### "))
        for index, children in enumerate(tree.children):
            if not children:
                continue
            ids = torch.tensor([*tree.nodes[0].token_ids.tolist(), *tree.completion(index).tolist(), *end])
            if len(ids) > params.rollout.context_length:
                assert credit.values[index] == 0.0
                continue
            with torch.no_grad():
                logprobs = (policy(input_ids=ids[None]).logits[0] / params.rollout.temperature).log_softmax(-1)
            places = range(len(ids) - scored, len(ids))
            expected = math.exp(sum(float(logprobs[k - 1, ids[k]]) for k in places))
            assert credit.values[index] == pytest.approx(expected, rel=1e-3)
            states += 1
    assert states > 4
