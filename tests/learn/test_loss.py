import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spo_core.config import KLPenalty, LearnParams
from spo_core.learn.loss import LossInputs, adapted_coefficient, importance_weights, kl_estimate, ppo_clip
from spo_core.learn.losses import CISPOOptions, GSPOOptions, cispo, gspo

PARAMS = LearnParams(learning_rate=1e-3, clip_low=0.2, clip_high=0.3)


def penalty(**options) -> KLPenalty:
    return KLPenalty.model_validate({"type": "penalty"} | options)


def naive_loss(logp: float, old: float, advantage: float) -> float:
    """Paper equation 7, one token at a time in float64."""
    ratio = np.exp(np.clip(logp - old, -10, 10))
    return -min(advantage * ratio, advantage * min(max(ratio, 0.8), 1.3))


numbers = st.lists(st.tuples(st.floats(-12, 0), st.floats(-12, 0), st.floats(-3, 3)), min_size=1, max_size=20)


@given(numbers)
def test_equal_to_the_formula_token_by_token(rows):
    logp, old, advantage = (torch.tensor(x, dtype=torch.float64) for x in zip(*rows, strict=True))
    found = ppo_clip(LossInputs(logp, old, advantage, torch.arange(len(logp))), PARAMS)
    expected = [naive_loss(*row) for row in rows]
    assert found.loss.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_on_policy_gradient_is_the_policy_gradient():
    logp = torch.tensor([-1.0, -2.0], requires_grad=True)
    advantages = torch.tensor([0.5, -1.5])
    ppo_clip(LossInputs(logp, logp.detach(), advantages, torch.arange(len(logp))), PARAMS).loss.sum().backward()
    assert logp.grad.tolist() == pytest.approx([-0.5, 1.5])


@pytest.mark.parametrize(("shift", "advantage"), [(0.5, 1.0), (-0.5, -1.0)])
def test_no_gradient_beyond_the_clip_range_in_the_direction_of_the_advantage(shift, advantage):
    old = torch.tensor([-1.0])
    logp = (old + shift).requires_grad_()
    loss = ppo_clip(LossInputs(logp, old, torch.tensor([advantage]), torch.arange(len(logp))), PARAMS)
    loss.loss.sum().backward()
    assert logp.grad.item() == 0 and bool(loss.metrics["clip_fraction"])


def naive_gspo(rows: list[tuple[int, float, float, float]], low: float, high: float) -> tuple[list, list]:
    """Loss and gradient of each token by loops: arXiv 2507.18071, equation 7, the same for every token of a segment."""
    losses, gradients = [], []
    members = {s: [row for row in rows if row[0] == s] for s, *_ in rows}
    signs = {}
    for s, own in members.items():
        ratio = np.exp(sum(logp - old for _, logp, old, _ in own) / len(own))
        kept = [not (a > 0 and ratio > 1 + high) and not (a < 0 and ratio < 1 - low) for *_, a in own]
        signs[s] = (ratio, sum(-a * ratio / len(own) for (*_, a), k in zip(own, kept, strict=True) if k))
    for s, _, _, a in rows:
        ratio, gradient = signs[s]
        losses.append(-min(a * ratio, a * min(max(ratio, 1 - low), 1 + high)))
        gradients.append(gradient)
    return losses, gradients


segmented = st.lists(
    st.tuples(st.integers(0, 3), st.floats(-5, 0), st.floats(-5, 0), st.floats(-3, 3)), min_size=1, max_size=16
)


@given(segmented, st.sampled_from([(3e-4, 4e-4), (0.5, 2.0)]))
def test_gspo_is_its_formula_and_gradient(rows, clip):
    rows = sorted(rows)
    numbers = {s: n for n, s in enumerate(sorted({row[0] for row in rows}))}
    rows = [(numbers[s], *rest) for s, *rest in rows]
    segment, logp, old, advantage = (torch.tensor(x, dtype=torch.float64) for x in zip(*rows, strict=True))
    logp.requires_grad_()
    found = gspo(LossInputs(logp, old, advantage, segment.long()), GSPOOptions(clip_low=clip[0], clip_high=clip[1]))
    found.loss.sum().backward()
    losses, gradients = naive_gspo(rows, *clip)
    assert found.loss.tolist() == pytest.approx(losses, rel=1e-9, abs=1e-12)
    assert logp.grad.tolist() == pytest.approx(gradients, rel=1e-9, abs=1e-12)


@given(numbers, st.sampled_from([(1.0, 4.0), (0.2, 0.28)]))
def test_cispo_is_its_formula_and_every_token_has_a_gradient(rows, clip):
    """arXiv 2506.13585, equation 4: the gradient of a token is -A times its clipped weight, whatever the ratio."""
    logp, old, advantage = (torch.tensor(x, dtype=torch.float64) for x in zip(*rows, strict=True))
    logp.requires_grad_()
    options = CISPOOptions(clip_low=clip[0], clip_high=clip[1])
    found = cispo(LossInputs(logp, old, advantage, torch.arange(len(logp))), options)
    found.loss.sum().backward()
    weights = [min(max(np.exp(min(max(a - b, -10), 10)), 1 - clip[0]), 1 + clip[1]) for a, b, _ in rows]
    assert logp.grad.tolist() == pytest.approx([-a * w for (*_, a), w in zip(rows, weights, strict=True)], rel=1e-9)
    expected = [-a * w * lp for (lp, _, a), w in zip(rows, weights, strict=True)]
    assert found.loss.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_higher_upper_clip_keeps_tokens_that_rise():
    """DAPO, arXiv 2503.14476, equation 8: with 0.28 a ratio of 1.25 still has its gradient, with 0.2 none."""
    for high, gradient in ((0.28, -1.25), (0.2, 0.0)):
        logp = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
        params = LearnParams(learning_rate=1e-3, clip_high=high)
        old = logp.detach() - np.log(1.25)
        ppo_clip(LossInputs(logp, old, torch.ones(1, dtype=torch.float64), torch.arange(1)), params).loss.backward()
        assert logp.grad.item() == pytest.approx(gradient)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimators_agree_with_the_exact_kl_near_the_reference(estimator):
    """Their mean over all tokens of a distribution: exact for k1 and k3, to second order for k2 (Schulman 2020)."""
    torch.manual_seed(0)
    logits = torch.randn(50, dtype=torch.float64)
    policy = logits.log_softmax(-1)
    reference = (logits + 0.03 * torch.randn(50, dtype=torch.float64)).log_softmax(-1)
    exact = float((policy.exp() * (policy - reference)).sum())
    mean = float((policy.exp() * kl_estimate(policy, reference, penalty(estimator=estimator))).sum())
    assert mean == pytest.approx(exact, rel=0.05 if estimator == "k2" else 1e-9)


@given(st.floats(-12, 0), st.floats(-12, 0))
def test_k2_and_k3_are_never_negative_and_a_maximum_holds(logp, reference):
    a, b = torch.tensor([logp], dtype=torch.float64), torch.tensor([reference], dtype=torch.float64)
    for estimator in ("k2", "k3"):
        assert float(kl_estimate(a, b, penalty(estimator=estimator))) >= -1e-12
        assert float(kl_estimate(a, b, penalty(estimator=estimator, max=0.5))) <= 0.5


def test_the_gradient_of_k1_as_a_loss_is_zero_on_average():
    """Which is why its docstring sends it to the reward."""
    logits = torch.randn(8, dtype=torch.float64, requires_grad=True)
    logp = logits.log_softmax(-1)
    reference = torch.randn(8, dtype=torch.float64).log_softmax(-1)
    (logp.detach().exp() * kl_estimate(logp, reference, penalty(estimator="k1"))).sum().backward()
    assert logits.grad.abs().max() < 1e-12


def test_importance_weights_are_the_ratio_up_to_the_cap():
    trainer, engine = torch.log(torch.tensor([0.5, 0.4, 0.1])), torch.log(torch.tensor([0.1, 0.4, 0.5]))
    assert importance_weights(trainer, engine, 2.0).tolist() == pytest.approx([2.0, 1.0, 0.2])


def test_an_adaptive_coefficient_moves_towards_its_target():
    adaptive = penalty(coefficient=0.1, adaptive={"target": 0.05, "horizon": 100})
    assert adapted_coefficient(0.1, 0.5, 100, adaptive) == pytest.approx(0.12)  # limited to 20 %
    assert adapted_coefficient(0.1, 0.0, 100, adaptive) == pytest.approx(0.08)
    assert adapted_coefficient(0.1, 0.5, 10, adaptive) == pytest.approx(0.1 * 1.02)
    assert adapted_coefficient(0.1, 0.5, 10**9, adaptive) == pytest.approx(0.12)
    assert adapted_coefficient(0.1, 0.05, 100, adaptive) == pytest.approx(0.1)
    assert adapted_coefficient(0.1, 9.0, 100, penalty(coefficient=0.1)) == 0.1


def test_nothing_to_train_is_not_nan():
    empty = torch.zeros(0)
    loss = ppo_clip(LossInputs(empty, empty, empty, torch.arange(len(empty))), PARAMS)
    assert float(loss.loss.sum()) == 0 and float(kl_estimate(empty, empty, penalty()).sum()) == 0
