import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spo_core.config import LearnParams
from spo_core.learn.loss import token_loss

PARAMS = LearnParams(learning_rate=1e-3, clip_low=0.2, clip_high=0.3)


def naive(logp: float, old: float, advantage: float, reference: float) -> tuple[float, float]:
    """Paper equation 7 and k3, one token at a time in float64."""
    ratio = np.exp(np.clip(logp - old, -10, 10))
    policy = -min(advantage * ratio, advantage * min(max(ratio, 0.8), 1.3))
    d = np.clip(reference - logp, -10, 10)
    return policy, np.exp(d) - d - 1


numbers = st.lists(st.tuples(*[st.floats(-12, 0)] * 3, st.floats(-3, 3)), min_size=1, max_size=20)


@given(numbers)
def test_equal_to_the_formula_token_by_token(rows):
    logp, old, reference, advantage = (torch.tensor(x, dtype=torch.float64) for x in zip(*rows, strict=True))
    found = token_loss(logp, old, advantage, reference, PARAMS)
    expected = [naive(*row) for row in zip(*(x.tolist() for x in (logp, old, advantage, reference)), strict=True)]
    assert found.policy.tolist() == pytest.approx([p for p, _ in expected], rel=1e-9, abs=1e-12)
    assert found.kl.tolist() == pytest.approx([k for _, k in expected], rel=1e-9, abs=1e-9)
    assert (found.kl >= -1e-12).all()


def test_on_policy_gradient_is_the_policy_gradient():
    logp = torch.tensor([-1.0, -2.0], requires_grad=True)
    advantages = torch.tensor([0.5, -1.5])
    token_loss(logp, logp.detach(), advantages, None, PARAMS).policy.sum().backward()
    assert logp.grad.tolist() == pytest.approx([-0.5, 1.5])


@pytest.mark.parametrize(("shift", "advantage"), [(0.5, 1.0), (-0.5, -1.0)])
def test_no_gradient_beyond_the_clip_range_in_the_direction_of_the_advantage(shift, advantage):
    old = torch.tensor([-1.0])
    logp = (old + shift).requires_grad_()
    loss = token_loss(logp, old, torch.tensor([advantage]), None, PARAMS)
    loss.policy.sum().backward()
    assert logp.grad.item() == 0 and bool(loss.clipped)


def test_nothing_to_train_is_not_nan():
    empty = torch.zeros(0)
    loss = token_loss(empty, empty, empty, empty, PARAMS)
    assert float(loss.policy.sum()) == 0 and float(loss.kl.sum()) == 0
