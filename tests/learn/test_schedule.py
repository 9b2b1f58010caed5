import math

import pytest

from spo_core.config import LearnParams
from spo_core.learn.schedule import learning_rate


def rates(steps, **options):
    params = LearnParams(**({"learning_rate": 1e-6} | options))
    return [learning_rate(step, params) for step in steps]


def test_linear_rise_then_constant():
    assert rates(range(6), warmup_steps=4) == pytest.approx([0.25e-6, 0.5e-6, 0.75e-6, 1e-6, 1e-6, 1e-6])
    assert rates([0], warmup_steps=0) == [1e-6]


def test_log_rise_is_half_of_the_peak_after_the_square_root_of_the_warm_up():
    """docs/reference.md 3.1."""
    found = rates(range(121), warmup_steps=121, warmup="log")
    assert found[0] == 0 and found[10] == pytest.approx(0.5e-6) and found[120] == pytest.approx(1e-6)
    assert found[50] == pytest.approx(1e-6 * math.log(51) / math.log(121))


def test_linear_decay_to_zero_at_the_published_total():
    found = rates([120, 2060, 3999, 4000, 9999], warmup_steps=120, warmup="log", decay_steps=4000)
    assert found == pytest.approx([1e-6, 0.5e-6, 1e-6 / 3880, 0, 0])


@pytest.mark.parametrize("warmup", [1, 2])
def test_a_short_log_rise_is_finite(warmup):
    assert all(0 <= rate <= 1e-6 for rate in rates(range(4), warmup_steps=warmup, warmup="log"))
