"""Findings: candidates compared with the first, and what is said of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from spo_core.analysis.candidates import REFERENCE, Candidate, reference_of
from spo_core.analysis.efficiency import Efficiency, Estimate, cosine, efficiency, gain
from spo_core.analysis.findings import Measured, Row, as_json, compare, recommend
from spo_core.analysis.measure import measure, read_credited, read_gradients
from spo_core.analysis.shape import shape
from spo_core.analysis.truth import measure_states
from tests.analysis.laboratory import candidate, laboratory
from tests.invariants.test_training_runs import prepared

NO_CUTS = np.zeros(0)
NAN = Estimate(math.nan, math.nan)
FLAT = shape([], NO_CUTS)


def row(name: str, seconds: Estimate | None = None, tokens: Estimate | None = None, **more) -> Row:
    one = Estimate(10.0, 1.0)
    own = Efficiency(one, one, one, one, one, one, 100.0, 1.0, 20)
    return replace(Row(name, f"{name}'s parts", own, Estimate(0.98, 0.02), tokens, seconds, FLAT, None, None), **more)


def weak(name: str, per_token: Estimate) -> Row:
    plain = row(name)
    return replace(plain, efficiency=replace(plain.efficiency, per_token=per_token))


def test_the_strongest_for_a_second_stands_first_and_is_advised():
    rows = [
        row("base"),
        row("slow", Estimate(0.5, 0.1), Estimate(3.0, 0.4)),
        row("thin", Estimate(1.9, 0.3), Estimate(1.1, 0.2)),
        row("even", Estimate(1.2, 0.2), Estimate(0.9, 0.1)),
    ]
    assert recommend(rows) == [
        "thin gives 1.90 ± 0.30 times what base gives a second, and 1.10 ± 0.20 times (not told from 1) a token.",
        "even gives 1.20 ± 0.20 times (not told from 1) what base gives a second, and 0.90 ± 0.10 times "
        "(not told from 1) a token.",
        "slow gives 0.50 ± 0.10 times what base gives a second, and 3.00 ± 0.40 times a token.",
        "Train with thin; its cosine to the reference is 0.98 ± 0.02.",
    ]


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ([row("b", Estimate(1.4, 0.21), Estimate(2, 0.1))], "Nothing beats a by 2 standard errors a second: keep it"),
        ([row("b", Estimate(1.4, 0.19), Estimate(2, 0.1))], "Train with b; its cosine"),
        (
            [row("b", Estimate(1.4, 0.1), Estimate(2, 0.1), cosine=NAN)],
            "Train with b; its cosine to the reference is not",
        ),
        (
            [row(REFERENCE, Estimate(1.4, 0.1), Estimate(2, 0.1), cosine=None)],
            "Train with what the reference is: reference's parts.",
        ),
    ],
)
def test_the_last_sentence_says_what_to_do(others, says):
    assert recommend([row("a"), *others])[-1].startswith(says)


@pytest.mark.parametrize("own", [Estimate(10, 6), Estimate(-1, 0.1), NAN, Estimate(10, math.nan)])
def test_nothing_is_compared_with_what_is_not_told_from_zero(own):
    said = recommend([weak("a", own), row("b", Estimate(1.4, 0.1), Estimate(2, 0.1))])
    assert said == ["The efficiency of a is not told from zero, so nothing is compared: measure more tokens."]


def test_a_candidate_that_trained_nothing_is_said_to():
    said = recommend([row("a"), row("b", NAN, NAN), row("c", Estimate(1, 0.1), Estimate(1, 0.1))])
    assert said[0].startswith("c gives") and said[1] == "b trained nothing." and len(said) == 3


def test_rows_are_what_their_measurements_say(tmp_path, policy, tokenizer, monkeypatch):
    paths = prepared(tmp_path, policy, tokenizer, monkeypatch)
    chosen = [candidate("tree"), Candidate("whole", candidate("whole").params)]
    chosen.append(reference_of(chosen[0]))
    with laboratory(paths, tmp_path / "a", chosen) as bench:
        measured = []
        for one in chosen:
            folder = tmp_path / "a" / one.name
            measure(bench, one, folder, 800)
            states = measure_states(bench, one, read_credited(one, folder), folder / "states", states=8, rollouts=4)
            measured.append(Measured(one, read_gradients(folder), read_credited(one, folder), states))
        rows = compare(bench, measured, measured[-1].gradients)
    assert [r.name for r in rows] == ["tree", "whole", REFERENCE]
    for r, m in zip(rows, measured, strict=True):
        assert r.efficiency == efficiency(m.gradients) and r.described == m.candidate.described
        if r is not rows[0]:
            for found, cost in ((r.tokens_gain, "tokens"), (r.seconds_gain, "seconds")):
                expected = gain(m.gradients, measured[0].gradients, cost)
                assert found is not None
                np.testing.assert_equal([found.value, found.error], [expected.value, expected.error])
        if r.name != REFERENCE:
            expected = cosine(m.gradients, measured[-1].gradients)
            assert r.cosine is not None
            np.testing.assert_equal(r.cosine.value, expected.value)
        assert (r.values is not None) == (r.name == "tree") and r.found is not None
    assert rows[0].tokens_gain is rows[0].seconds_gain is rows[2].cosine is None
    assert rows[0].values is not None and rows[0].values.states == 8
    assert sum(count for *_, count in rows[0].values.calibration) == 8
    text = json.dumps(as_json(rows), allow_nan=False)
    assert json.loads(text)[0]["values"]["states"] == 8


def test_what_is_not_finite_is_null_and_keys_are_text():
    (found,) = as_json([row("a", NAN, Estimate(math.inf, 1.0))])
    assert found["seconds_gain"] == {"value": None, "error": None} and found["tokens_gain"]["value"] is None
    assert found["efficiency"]["tokens"] == 100.0 and json.dumps(found, allow_nan=False)
