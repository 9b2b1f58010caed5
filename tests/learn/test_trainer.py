"""The update: what does not matter must not, and what matters must."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from spo_core.config import CreditParams, LearnParams, with_fidelity
from spo_core.credit import assign_credit
from spo_core.errors import TrainingError
from spo_core.learn.backend import TorchBackend
from spo_core.learn.loss import PASS_SUMS, RESERVED, LossInputs, kl_estimate, ppo_clip
from spo_core.learn.objective import counted_masks
from spo_core.learn.trainer import Trainer
from spo_core.learn.tree_batch import TrainedSegments
from spo_core.tree import Node, RolloutTree
from tests.conftest import random_tree, with_rewards
from tests.learn.naive import flat_logprobs

CREDIT = CreditParams(
    partition={"type": "fixed_tokens", "tokens": 4},
    value={"type": "tree_mean"},
    advantage={"type": "difference"},
    mask={"type": "low_probability", "threshold": 0.9},
)
DEFAULTS = {"learning_rate": 1e-2, "optimizer_steps": 1, "max_logprob_gap": 99, "max_grad_norm": 1e9}
PENALTY = {"type": "penalty", "coefficient": 0.3}


def sample(count: int = 6, seed: int = 0):
    rng = np.random.default_rng(seed)
    trees = [random_tree(rng, depth=3, widest=3, longest=5) for _ in range(count)]
    return [(tree, assign_credit(tree, CREDIT)) for tree in trees]


def make_trainer(policy, reference=None, **options) -> Trainer:
    params = LearnParams.model_validate(with_fidelity(DEFAULTS | options))
    reference = copy.deepcopy(reference or policy).requires_grad_(False) if params.kl.type == "penalty" else None
    return Trainer(TorchBackend(copy.deepcopy(policy), reference, params), params, temperature=1.0, seed=0)


def train(policy, pairs, **options):
    trainer = make_trainer(policy, **options)
    gradients = capture_gradients(trainer)
    metrics = trainer.train_iteration(pairs, iteration=1)
    return trainer.backend.model, metrics, gradients


def capture_gradients(trainer) -> list[list[torch.Tensor]]:
    """Gradients of every optimizer step, before they are applied and forgotten."""
    steps: list[list[torch.Tensor]] = []
    original = trainer.backend.step

    def step(rate: float) -> float:
        steps.append([p.grad.clone() for p in trainer.backend.model.parameters()])
        return original(rate)

    trainer.backend.step = step
    return steps


def distance(a, b) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a.parameters(), b.parameters(), strict=True))


def relative(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    difference = sum(float((x - y).square().sum()) for x, y in zip(a, b, strict=True)) ** 0.5
    return difference / sum(float(x.square().sum()) for x in a) ** 0.5


def flat(pairs, masks, pick) -> torch.Tensor:
    """A per-token quantity in the order of ``flat_logprobs``."""
    parts = [
        pick(t, c, i)[m[i]]
        for depth in range(1, 4)
        for (t, c), m in zip(pairs, masks, strict=True)
        for i in range(len(t.nodes))
        if t.depths[i] == depth and m[i].any()
    ]
    return torch.from_numpy(np.concatenate(parts).astype(np.float32))


@pytest.mark.parametrize("where", ["loss", "reward", None])
@pytest.mark.parametrize("zero", ["drop", "keep"])
def test_the_gradient_is_that_of_the_loss_over_the_whole_batch(policy, where, zero):
    """One optimizer step against the formula on flat sequences, normalised by the count of masked tokens."""
    pairs = sample()
    kl = {"kl": PENALTY | {"where": where}} if where else {}
    other = copy.deepcopy(policy)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.9)
    model, metrics, gradients = train(policy, pairs, reference=other, zero_advantage=zero, **kl)
    params = LearnParams.model_validate(with_fidelity(DEFAULTS | {"zero_advantage": zero} | kl))
    masks = [counted_masks(c, params) for _, c in pairs]
    items = [TrainedSegments(t, m) for (t, _), m in zip(pairs, masks, strict=True)]
    model = copy.deepcopy(policy)
    logprobs, _ = flat_logprobs(model, items, 1.0)
    reference = flat_logprobs(other, items, 1.0)[0].detach()
    old = flat(pairs, masks, lambda t, c, i: t.nodes[i].logprobs)
    advantages = flat(pairs, masks, lambda t, c, i: c.advantages[i])
    loss = 0.0
    if where == "reward":
        advantages = advantages - 0.3 * kl_estimate(old, reference, params.kl)
    elif where == "loss":
        loss = 0.3 * kl_estimate(logprobs, reference, params.kl).sum() / len(logprobs)
    loss = loss + ppo_clip(LossInputs(logprobs, old, advantages, torch.arange(len(logprobs))), params).loss.sum() / len(
        logprobs
    )
    loss.backward()
    assert relative([p.grad for p in model.parameters()], gradients[0]) <= 1e-5
    assert metrics["trained_tokens"] <= len(logprobs)


@pytest.mark.parametrize("options", [{}, {"fidelity": "reference", "micro_batch": 2}, {"kl": PENALTY}])
@pytest.mark.parametrize("budget", [1, 20, 60, 200])
def test_a_token_budget_changes_nothing(policy, budget, options):
    """1 x 8 = 8 x 1 accumulation: the same gradient however the step is divided into forward passes."""
    pairs = sample()
    _, a, whole = train(policy, pairs, **options)
    _, b, split = train(policy, pairs, max_tokens_per_forward=budget, **options)
    assert a["policy_loss"] == pytest.approx(b["policy_loss"], rel=1e-4)
    assert relative(whole[0], split[0]) <= 1e-5
    assert a["trained_tokens"] == b["trained_tokens"] and a["forwarded_tokens"] <= b["forwarded_tokens"]


@pytest.mark.parametrize("options", [{"max_tokens_per_forward": 30}, {"gradient_checkpointing": True}])
def test_divided_and_checkpointed_trajectories_are_one(policy, options):
    """Two iterations with several steps: the same weights to rounding."""
    trajectories = []
    for chosen in ({}, options):
        trainer = make_trainer(policy, learning_rate=1e-3, **chosen)
        for iteration in (1, 2):
            trainer.train_iteration(sample(seed=iteration), iteration=iteration)
        trajectories.append(trainer.backend.model)
    assert distance(*trajectories) < 1e-5 and distance(policy, trajectories[0]) > 1e-4


def test_zero_advantage_trains_nothing_and_says_so(policy):
    equal = [with_rewards(t, dict.fromkeys(t.leaves, 1.0)) for t, _ in sample()]
    for zero in ("drop", "keep"):
        model, metrics, _ = train(policy, [(t, assign_credit(t, CREDIT)) for t in equal], zero_advantage=zero)
        assert metrics["skipped"] == 1 and distance(policy, model) == 0


def test_a_step_makes_good_segments_likelier(policy):
    pairs = sample(count=8)
    model, _, _ = train(policy, pairs, learning_rate=1e-3)
    params = LearnParams.model_validate(DEFAULTS)
    masks = [counted_masks(c, params) for _, c in pairs]
    items = [TrainedSegments(t, m) for (t, _), m in zip(pairs, masks, strict=True)]
    before, after = (flat_logprobs(m, items, 1.0)[0] for m in (policy, model))
    assert float((flat(pairs, masks, lambda t, c, i: c.advantages[i]) * (after - before).detach()).sum()) > 0


def test_metrics_are_finite_numbers(policy):
    _, metrics, _ = train(policy, sample(), optimizer_steps=3, epochs=2, kl=PENALTY, importance_cap=2.0)
    assert all(np.isfinite(v) for v in metrics.values())
    assert metrics["optimizer_steps"] == 6 and 0 <= metrics["clip_fraction"] <= 1 and metrics["entropy"] > 0


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"kl": PENALTY}, {"kl", "kl_coefficient"}),
        ({"report_entropy": True}, {"entropy"}),
        ({"importance_cap": 2.0}, {"importance_weight"}),
        ({"max_ratio": 50.0}, {"guarded_segments"}),
    ],
)
def test_what_is_not_measured_is_no_metric(policy, options, keys):
    """No constant stands for a feature that is off."""
    _, on, _ = train(policy, sample(), **({"report_entropy": False} | options))
    _, off, _ = train(policy, sample(), report_entropy=False)
    assert on.keys() - off.keys() == keys


def test_a_loss_can_take_the_name_of_no_metric_of_the_trainer(policy):
    options = {"kl": PENALTY, "report_entropy": True, "importance_cap": 2.0, "max_ratio": 50.0}
    _, metrics, _ = train(policy, sample(), **options)
    assert metrics.keys() - {"ratio", "clip_fraction"} == RESERVED - set(PASS_SUMS)


def test_trees_of_another_policy_stop_the_run(policy):
    with pytest.raises(TrainingError, match=r"differ by .* nats a token"):
        train(policy, sample(), max_logprob_gap=0.05)


def test_replayed_segments_do_not_count_in_the_gap(policy):
    trainer = make_trainer(policy, max_logprob_gap=0.05)
    trainer.step = 7  # the trees are of policy version 0
    assert "logprob_gap" not in trainer.train_iteration(sample(), iteration=2)


def of_policy(policy, pairs):
    """The same trees with the policy's own log-probs as sampling log-probs."""
    items = [TrainedSegments(t, tuple(np.full(len(n.token_ids), n.trainable) for n in t.nodes)) for t, _ in pairs]
    again = []
    for item, (tree, credit) in zip(items, pairs, strict=True):
        logprobs = flat_logprobs(policy, [item], 1.0)[0].detach().numpy()
        nodes = list(tree.nodes)
        at = 0
        for depth in range(1, max(tree.depths) + 1):
            for i, node in enumerate(tree.nodes):
                if tree.depths[i] == depth:
                    own = logprobs[at : at + len(node.token_ids)]
                    nodes[i] = Node.sampled(
                        node.parent, node.token_ids, np.minimum(own, 0), node.finish, reward=node.reward
                    )
                    at += len(node.token_ids)
        again.append((RolloutTree(tree.question_id, tuple(nodes)), credit))
    return again


def test_importance_correction_of_an_exact_engine_changes_nothing(policy):
    pairs = of_policy(policy, sample())
    _, plain, a = train(policy, pairs)
    _, corrected, b = train(policy, pairs, importance_cap=2.0)
    assert corrected["importance_weight"] == pytest.approx(1.0, abs=1e-4) and plain["logprob_gap"] < 1e-5
    assert relative(a[0], b[0]) <= 1e-4


def test_importance_correction_weights_tokens_by_trainer_over_engine(policy):
    pairs = sample()
    _, metrics, gradients = train(policy, pairs, importance_cap=1.5)
    params = LearnParams.model_validate(DEFAULTS)
    masks = [counted_masks(c, params) for _, c in pairs]
    model = copy.deepcopy(policy)
    logprobs, _ = flat_logprobs(model, [TrainedSegments(t, m) for (t, _), m in zip(pairs, masks, strict=True)], 1.0)
    engine = flat(pairs, masks, lambda t, c, i: t.nodes[i].logprobs)
    weight = (logprobs.detach() - engine).exp().clamp(max=1.5)
    # ratio 1 against the trainer's own log-probs: the gradient is -A x weight
    advantages = flat(pairs, masks, lambda t, c, i: c.advantages[i])
    (-(weight * advantages * logprobs).sum() / len(logprobs)).backward()
    assert relative([p.grad for p in model.parameters()], gradients[0]) <= 1e-4
    assert metrics["importance_weight"] == pytest.approx(float(weight.mean()), rel=1e-4)


def test_segments_beyond_the_ratio_guard_are_left_out_and_counted(policy):
    """One segment sampled at a third of its probability: its ratio is 3, and with a guard at 2 it has no gradient."""
    pairs = of_policy(policy, sample())
    tree, credit = pairs[0]
    node = next(i for i, m in enumerate(counted_masks(credit, LearnParams.model_validate(DEFAULTS))) if m.any())
    nodes = list(tree.nodes)
    nodes[node] = replace(nodes[node], logprobs=nodes[node].logprobs - np.float32(np.log(3)))
    shifted = [(RolloutTree(tree.question_id, tuple(nodes)), credit), *pairs[1:]]
    _, metrics, guarded = train(policy, shifted, max_ratio=2.0)
    _, unguarded, _ = train(policy, shifted, max_ratio=4.0)
    assert (metrics["guarded_segments"], unguarded["guarded_segments"]) == (1, 0)
    without = tuple(m if i == node else np.zeros_like(m) for i, m in enumerate(credit.masks))
    _, alone, segment = train(policy, [(tree, replace(credit, masks=without))])
    _, whole, full = train(policy, pairs)
    share = alone["trained_tokens"] / whole["trained_tokens"]
    expected = [g - share * own for g, own in zip(full[0], segment[0], strict=True)]
    assert relative(expected, guarded[0]) <= 1e-4


def test_the_learning_rate_follows_the_schedule_and_can_restart(policy):
    trainer = make_trainer(policy, optimizer_steps=2, warmup_steps=4)
    metrics = trainer.train_iteration(sample(), iteration=1)
    assert metrics["learning_rate"] == pytest.approx(1e-2 * 2 / 4) and trainer.learning_rate == pytest.approx(0.0075)
    trainer.restart_learning_rate()
    assert trainer.learning_rate == pytest.approx(1e-2 / 4)


def test_an_adaptive_kl_coefficient_is_carried_over_iterations_and_saved(policy, tmp_path):
    kl = PENALTY | {"adaptive": {"target": 1e-9, "horizon": 1}}
    trainer = make_trainer(policy, kl=kl, optimizer_steps=2)
    trainer.train_iteration(sample(), iteration=1)
    assert trainer.kl_coefficient == pytest.approx(0.3 * 1.2)
    trainer.save(tmp_path)
    again = make_trainer(policy, kl=kl, optimizer_steps=2)
    again.load(tmp_path)
    assert (again.step, again.kl_coefficient) == (trainer.step, trainer.kl_coefficient)


def test_a_loss_that_is_not_finite_stops_the_run(policy):
    with torch.no_grad():
        policy.lm_head.weight[5, 0] = float("nan")
    with pytest.raises(TrainingError, match="loss is nan"):
        train(policy, sample())


def test_one_trained_token_is_not_nan(policy):
    """The published whitening divides by zero there, and an empty mask gives 0 / 0 (docs/reference.md 6 item 8)."""
    tree = RolloutTree("q", (Node.prompt([3, 4]), *(Node.sampled(0, [5], [-1], "stop", reward=r) for r in (1.0, 0.0))))
    credit = assign_credit(tree, CREDIT)
    for options in ({}, {"fidelity": "reference", "micro_batch": 1}, {"zero_advantage": "keep", "kl": PENALTY}):
        model, metrics, _ = train(policy, [(tree, credit)], **options)
        assert all(np.isfinite(v) for v in metrics.values())
        assert all(torch.isfinite(p).all() for p in model.parameters())


def test_trees_without_nodes_to_train_are_harmless(policy):
    pairs = sample(count=1)
    only_prompt = RolloutTree("q", (pairs[0][0].nodes[0].graded(1.0, "correct"),))
    model, _, _ = train(policy, [*pairs, (only_prompt, assign_credit(only_prompt, CREDIT))])
    assert distance(model, train(policy, pairs)[0]) < 1e-6
