import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spo_core.config import Cutpoints, Delimiter, Entropy, EqualParts
from spo_core.credit.partition import (
    cut,
    cutpoints,
    delimiter,
    entropy_cuts,
    equal_parts,
    reference_equal_parts,
    segment_bounds,
)

WORKED = np.log([0.99, 0.5, 0.99, 0.8, 0.99, 0.7, 0.6, 0.95])


@pytest.mark.parametrize(("interval", "cuts"), [(1, [0, 2, 4, 5]), (2, [0, 4]), (5, [0])])
def test_worked_example_of_the_reference(interval, cuts):
    assert cutpoints(WORKED, 0.9, interval) == cuts


def test_a_low_first_token_cuts_at_the_prompt():
    assert cutpoints(np.log([0.5, 0.99, 0.5]), 0.9, 1) == [-1, 1]
    assert segment_bounds(3, [-1, 1]) == [(0, 2), (2, 3)]


def test_a_token_at_exactly_the_threshold_is_not_low():
    for threshold in (0.5, 0.9, 0.8, 0.3):
        assert cutpoints([float(np.log(threshold))], threshold, 1) == []
        assert cutpoints(np.log([threshold]).astype(np.float32), threshold, 1) == []  # the form nodes keep


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


@pytest.mark.parametrize(
    ("length", "raw", "cuts"),
    [
        (1, [0, 0, 0], []),
        (2, [0, 1, 1], [0]),
        (3, [0, 1, 2], [0, 1]),
        (4, [0, 1, 2], [0, 1, 2]),
        (8, [1, 3, 5], [1, 3, 5]),
        (10, [2, 5, 7], [2, 5, 7]),  # parts of 3, 3, 2, 2: longer ones first
    ],
)
def test_equal_parts_are_the_references_without_repeats_and_without_the_last_token(length, raw, cuts):
    assert reference_equal_parts(length, 4) == raw
    assert equal_parts(length, 4) == cuts


@given(st.integers(1, 200), st.integers(1, 30))
def test_equal_parts_differ_by_one_token_at_most(length, parts):
    sizes = [b - a for a, b in segment_bounds(length, equal_parts(length, parts))]
    assert len(sizes) == min(length, parts)
    assert sizes == sorted(sizes, reverse=True) and sizes[0] - sizes[-1] <= 1


@pytest.mark.parametrize(
    ("texts", "text", "cuts"),
    [
        (["a", "\n", "b", "\n", "c"], "\n", [1, 3]),
        (["a", "\n", "b", "\n"], "\n", [1]),  # the end of the last step is the response's own
        (["a", "\n", "b", "\n", ""], "\n", [1]),  # so it is before an end-of-sequence token
        (["a", "\n", "\n", "b"], "\n\n", [2]),  # completed by the second token
        (["a\n", "\nb", "\n", "\n", "c"], "\n\n", [1, 3]),
        (["a\nb\nc", "d"], "\n", [0]),  # two in one token are one cut
        (["x", "", "\n", "", "y"], "\n", [2]),  # the first token that reaches it, not an empty one behind it
        (["\n", "\n", "\n", "a"], "\n\n", [1]),  # occurrences do not overlap
        (["a", "b"], "\n", []),
        (["\n"], "\n", []),
    ],
)
def test_delimiter_cuts_behind_the_token_that_completes_it(texts, text, cuts):
    assert delimiter(texts, text) == cuts
    assert delimiter(texts, text, max_cuts=1) == cuts[:1]


def test_entropy_cuts_before_tokens_strictly_above_the_threshold():
    entropies = np.array([0.7, 0.1, 0.5, 0.9, 0.0, 2.0], np.float32)
    assert entropy_cuts(entropies, 0.5, 1) == [-1, 2, 4]
    assert entropy_cuts(entropies, 0.5, 2) == [-1, 4]


PARTITIONS = st.one_of(
    st.builds(
        Cutpoints, type=st.just("cutpoints"), prob_threshold=st.sampled_from([0.2, 0.9]), interval=st.integers(1, 4)
    ),
    st.builds(EqualParts, type=st.just("equal_parts"), parts=st.integers(1, 9)),
    st.builds(
        Delimiter,
        type=st.just("delimiter"),
        text=st.sampled_from(["a", "ab", "aa"]),
        max_cuts=st.none() | st.integers(1, 3),
    ),
    st.builds(Entropy, type=st.just("entropy"), threshold=st.sampled_from([0.1, 1.0]), interval=st.integers(1, 4)),
)


@given(
    PARTITIONS,
    st.lists(st.tuples(st.floats(0.01, 1.0), st.floats(0, 3), st.sampled_from(["", "a", "b", "ab"])), min_size=1),
)
def test_every_partition_covers_the_response_and_leaves_its_last_token_uncut(partition, tokens):
    probabilities, entropies, texts = zip(*tokens, strict=True)
    cuts = cut(partition, np.log(probabilities), entropies=np.array(entropies), texts=texts)
    bounds = segment_bounds(len(tokens), cuts)
    assert [t for a, b in bounds for t in range(a, b)] == list(range(len(tokens)))
    assert all(-1 <= c < len(tokens) - 1 for c in cuts)


def test_what_a_partition_needs_is_asked_for():
    with pytest.raises(ValueError, match="entropy at every token"):
        cut(Entropy(type="entropy", threshold=1.0), np.zeros(2))
    with pytest.raises(ValueError, match="text of every token"):
        cut(Delimiter(type="delimiter"), np.zeros(2))
