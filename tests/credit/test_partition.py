import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spo_core.credit.partition import cutpoints, segment_bounds

WORKED = np.log([0.99, 0.5, 0.99, 0.8, 0.99, 0.7, 0.6, 0.95])


@pytest.mark.parametrize(("interval", "cuts"), [(1, [0, 2, 4, 5]), (2, [0, 4]), (5, [0])])
def test_worked_example_of_the_reference(interval, cuts):
    assert cutpoints(WORKED, 0.9, interval) == cuts


def test_a_low_first_token_cuts_at_the_prompt():
    assert cutpoints(np.log([0.5, 0.99, 0.5]), 0.9, 1) == [-1, 1]
    assert segment_bounds(3, [-1, 1]) == [(0, 2), (2, 3)]


def test_a_token_at_exactly_the_threshold_is_not_low():
    assert cutpoints([float(np.log(0.5))], 0.5, 1) == []


def test_no_cut_is_one_segment():
    assert segment_bounds(4, []) == [(0, 4)]


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=60), st.integers(1, 7))
def test_segments_cover_the_trajectory_without_gap(probabilities, interval):
    cuts = cutpoints(np.log(probabilities), 0.9, interval)
    bounds = segment_bounds(len(probabilities), cuts)
    assert [t for a, b in bounds for t in range(a, b)] == list(range(len(probabilities)))
    assert all(probabilities[c + 1] < 0.9 for c in cuts)


@pytest.mark.parametrize("cuts", [[3], [1, 1], [2, 1]])
def test_cutpoints_outside_or_out_of_order_are_refused(cuts):
    with pytest.raises(ValueError, match="do not rise"):
        segment_bounds(4, cuts)
