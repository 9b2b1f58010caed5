"""The update: what does not matter must not, and what matters must."""

import copy

import numpy as np
import pytest
import torch

from spo_core.config import CreditParams, LearnParams
from spo_core.credit import assign_credit
from spo_core.errors import TrainingError
from spo_core.learn.loss import token_loss
from spo_core.learn.trainer import Trainer
from spo_core.learn.tree_forward import TrainedSegments
from spo_core.tree import RolloutTree
from tests.conftest import random_tree
from tests.learn.naive import flat_logprobs

CREDIT = CreditParams(
    partition={"type": "fixed_tokens", "tokens": 4},
    value={"type": "tree_mean"},
    advantage={"type": "difference"},
    mask={"type": "low_probability", "threshold": 0.9},
)


def sample(count: int = 6, seed: int = 0):
    rng = np.random.default_rng(seed)
    trees = [random_tree(rng, depth=3, widest=3, longest=5) for _ in range(count)]
    return trees, [assign_credit(t, CREDIT) for t in trees]


def train(policy, trees, credits, **options):
    params = LearnParams(
        **({"learning_rate": 1e-2, "optimizer_steps": 1, "kl_coefficient": 0.0, "max_logprob_gap": 99} | options)
    )
    model = copy.deepcopy(policy)
    reference = copy.deepcopy(policy) if params.kl_coefficient else None
    trainer = Trainer(model, reference, params, temperature=1.0, seed=0)
    metrics = trainer.train_iteration(trees, credits, iteration=1)
    return model, metrics, trainer


def distance(a, b) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_the_gradient_is_that_of_the_loss_over_the_whole_batch(policy):
    """One optimizer step against the formula on flat sequences, normalised by the count of trained tokens."""
    trees, credits = sample()
    _, metrics, trainer = train(policy, trees, credits, max_grad_norm=1e9, kl_coefficient=0.3)
    model = copy.deepcopy(policy)
    masks = [tuple(m & (a != 0) for m, a in zip(c.masks, c.advantages, strict=True)) for c in credits]
    items = [TrainedSegments(t, m) for t, m in zip(trees, masks, strict=True)]
    logprobs, _ = flat_logprobs(model, items, 1.0)

    def flat(pick):
        parts = [
            pick(t, c, i)[m[i]]
            for depth in range(1, 4)
            for t, c, m in zip(trees, credits, masks, strict=True)
            for i in range(len(t.nodes))
            if t.depths[i] == depth and m[i].any()
        ]
        return torch.from_numpy(np.concatenate(parts).astype(np.float32))

    loss = token_loss(
        logprobs,
        flat(lambda t, c, i: t.nodes[i].logprobs),
        flat(lambda t, c, i: c.advantages[i]),
        logprobs.detach(),
        trainer.params,
    )
    ((loss.policy + 0.3 * loss.kl).sum() / len(logprobs)).backward()
    assert metrics["trained_tokens"] == len(logprobs)
    for expected, found in zip(model.parameters(), trainer.model.parameters(), strict=True):
        assert found.grad.numpy() == pytest.approx(expected.grad.numpy(), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("budget", [1, 60, 200])
def test_a_token_budget_changes_nothing(policy, budget):
    trees, credits = sample()
    whole, a, _ = train(policy, trees, credits)
    split, b, _ = train(policy, trees, credits, max_tokens_per_forward=budget)
    assert a["policy_loss"] == pytest.approx(b["policy_loss"], rel=1e-5)
    for x, y in zip(whole.parameters(), split.parameters(), strict=True):
        assert (x.grad - y.grad).norm() <= 1e-5 * x.grad.norm()


def test_zero_advantage_trains_nothing_and_says_so(policy):
    trees, _ = sample()
    equal = [t.with_rewards({leaf: (1.0, "correct") for leaf in t.leaves}) for t in trees]
    model, metrics, trainer = train(policy, equal, [assign_credit(t, CREDIT) for t in equal])
    assert metrics["skipped"] == 1 and trainer.step == 0 and distance(policy, model) == 0


def test_a_step_makes_good_segments_likelier(policy):
    trees, credits = sample(count=8)
    model, _, _ = train(policy, trees, credits, learning_rate=1e-3)
    gain = 0.0
    for t, c in zip(trees, credits, strict=True):
        masks = tuple(m & (a != 0) for m, a in zip(c.masks, c.advantages, strict=True))
        weights = [c.advantages[i][masks[i]] for d in range(1, 4) for i in range(len(t.nodes)) if t.depths[i] == d]
        before, _ = flat_logprobs(policy, [TrainedSegments(t, masks)], 1.0)
        after, _ = flat_logprobs(model, [TrainedSegments(t, masks)], 1.0)
        gain += float((torch.from_numpy(np.concatenate(weights)) * (after - before).detach()).sum())
    assert gain > 0


def test_metrics_are_finite_numbers_with_grouped_counts(policy):
    trees, credits = sample()
    _, metrics, _ = train(policy, trees, credits, optimizer_steps=3, epochs=2, kl_coefficient=1e-3)
    assert all(np.isfinite(v) for v in metrics.values())
    assert metrics["optimizer_steps"] == 6 and 0 <= metrics["clip_fraction"] <= 1


def test_trees_of_another_policy_stop_the_run(policy):
    trees, credits = sample()
    with pytest.raises(TrainingError, match=r"differ by .* nats a token"):
        train(policy, trees, credits, max_logprob_gap=0.05)


def test_learning_rate_rises_linearly(policy):
    trees, credits = sample()
    _, metrics, trainer = train(policy, trees, credits, optimizer_steps=2, warmup_steps=4)
    assert metrics["learning_rate"] == pytest.approx(1e-2 * 2 / 4) and trainer.learning_rate == pytest.approx(
        1e-2 * 3 / 4
    )


def test_a_loss_that_is_not_finite_stops_the_run(policy):
    trees, credits = sample()
    with torch.no_grad():
        policy.lm_head.weight[5, 0] = float("nan")
    with pytest.raises(TrainingError, match="loss is nan"):
        train(policy, trees, credits)


def test_trees_without_nodes_to_train_are_harmless(policy):
    trees, credits = sample(count=1)
    only_prompt = RolloutTree("q", trees[0].nodes[:1])
    empty = assign_credit(only_prompt.with_rewards({0: (1.0, "correct")}), CREDIT)
    model, _, _ = train(policy, [*trees, only_prompt], [*credits, empty])
    assert distance(model, train(policy, trees, credits)[0]) < 1e-6
