"""The comparison: costs and intervals against independent computations; runs resume, and are reused."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy.stats import ttest_rel

from benchmarks.compare import runs as running
from benchmarks.compare.__main__ import ALGORITHMS, BASELINE, FULL, MORE, QUICK
from benchmarks.compare.outcome import best_rates, cost_to, difference, mean_curve, paired, quotient
from benchmarks.compare.runs import COMMON, Algorithm, Plan, Run, make, prepared
from benchmarks.compare.tables import costs, curves, ends
from spo_core.config import load_params
from tests.conftest import ROOT, SHORT

accuracies = st.lists(st.floats(0, 1), min_size=2, max_size=12)


def run(accuracy: list[float], seed: int = 0, algorithm: str = "ours", rate: float = 1e-3, scale: int = 100) -> Run:
    tokens = [scale * i for i in range(len(accuracy))]
    return Run(algorithm, rate, seed, tokens[-1], tokens, [t / 50 for t in tokens], accuracy, [8] * len(accuracy), 7)


def pooled(values: list[float]) -> list[float]:
    """The non-decreasing fit of least squares by its min-max formula."""
    means = [[np.mean(values[i : j + 1]) for j in range(i, len(values))] for i in range(len(values))]
    return [max(min(means[i][j - i] for j in range(k, len(values))) for i in range(k + 1)) for k in range(len(values))]


@given(accuracies, st.floats(0, 1))
def test_the_cost_of_an_accuracy_lies_where_the_fit_reaches_it(values, target):
    fit, found = pooled(values), cost_to(run(values), target)
    near = [height for height in fit if abs(height - target) < 1e-9]
    if near:  # rounding decides
        return
    if target > fit[-1]:
        assert found is None
        return
    assert found is not None
    assert np.interp(found, [100 * i for i in range(len(values))], fit) == pytest.approx(max(target, fit[0]), abs=1e-6)


@given(accuracies, st.floats(0, 1), st.floats(0, 1))
def test_a_higher_accuracy_costs_no_less(values, a, b):
    low, high = (cost_to(run(values), target) for target in sorted((a, b)))
    assert high is None or (low is not None and low <= high)


def test_a_run_that_falls_back_is_not_counted_by_its_highest_point():
    assert cost_to(run([0.1, 0.9, 0.1, 0.1, 0.1]), 0.5) is None
    assert cost_to(run([0.1, 0.2, 0.6, 0.7]), 0.4, "seconds") == pytest.approx(3.0)


def test_differences_are_paired_by_seed_with_student_s_interval():
    rng = np.random.default_rng(0)
    ours = [run([0.1, own], seed) for seed, own in enumerate(rng.uniform(0.5, 0.7, 5))]
    theirs = [run([0.1, own], seed) for seed, own in enumerate(rng.uniform(0.4, 0.6, 5))]
    found = difference(ours, theirs[::-1])
    expected = ttest_rel([r.end for r in ours], [r.end for r in theirs]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    with pytest.raises(ValueError, match="seeds"):
        paired(ours, theirs[:4])
    assert math.isnan(difference(ours[:1], theirs[:1]).low), "one seed gives no interval"


def test_a_run_of_half_the_cost_has_the_quotient_one_half():
    theirs = [run([0.0, 0.4, 0.8], seed, scale=200 + seed) for seed in range(3)]
    ours = [replace(r, tokens=[t // 2 for t in r.tokens]) for r in theirs]
    found = quotient(ours, theirs, 0.6)
    assert found is not None and found.mean == pytest.approx(0.5, rel=1e-2) and found.low < 0.5 < found.high
    assert quotient(ours, theirs, 0.9) is None, "nobody reached it"


def test_the_best_rate_is_that_of_the_highest_mean_and_the_lower_of_equals():
    tried = [(1e-4, 0, 0.5), (1e-4, 1, 0.7), (3e-4, 0, 0.6), (3e-4, 1, 0.6), (1e-3, 0, 0.9), (1e-3, 1, 0.1)]
    assert best_rates([run([0, end], seed, rate=rate) for rate, seed, end in tried]) == {"ours": 1e-4}


def test_a_mean_curve_never_falls_and_ends_where_all_runs_still_were():
    group = [run([0.2, 0.1, 0.5, 0.4, 0.6], 0), run([0.3, 0.2, 0.6], 1)]
    curve = mean_curve(group, "tokens")
    heights = [height for _, height in curve]
    assert heights == sorted(heights) and curve[-1][0] == 200


def test_table_and_curves_name_every_algorithm():
    values = {BASELINE: 0.8, "ours": 0.9, "weak": 0.4}
    made = [run([0.1, end], seed, name) for name, end in values.items() for seed in range(3)]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(ends(made, BASELINE), costs(made, BASELINE, (0.5,)))
    text = console.export_text()
    assert all(name in text and name in curves(made, "tokens", "tokens") for name in values)
    assert "0 of 3 seeds" in text and "0.10 [" in text


@pytest.mark.parametrize("problem", [None, "short-arithmetic"])
def test_scales_differ_in_amount_alone_and_all_algorithms_share_questions_and_first_policy(problem):
    names = [algorithm.name for algorithm in (*ALGORITHMS, *MORE)]
    assert BASELINE in names and len(set(names)) == len(names)
    assert not set(FULL.sweep_seeds) & set(FULL.seeds) and QUICK.budget < FULL.budget
    asked = load_params(ROOT, problem, () if problem else COMMON)
    for algorithm in (*ALGORITHMS, *MORE):
        params = Plan(algorithm, 1e-3, 3, 500, problem).params
        assert params.run.seed == 3 and params.policy == asked.policy
        assert params.data.model_copy(update={"validation": None}) == asked.data.model_copy(update={"validation": None})
        assert params.rollout.context_length == asked.rollout.context_length


@pytest.mark.slow
def test_runs_are_made_once_and_start_from_one_policy(tmp_path, monkeypatch):
    """Two tiny runs: a second call reads them again, to the same numbers; tokens rise to the budget."""
    small = (
        *SHORT,
        "data.train=40",
        "data.validation=6",
        "data.test=6",
        "policy.init.hidden_size=16",
        "policy.init.layers=1",
        "policy.init.heads=1",
        "policy.warmup.steps=2",
        "rollout.questions=2",
        "learn.optimizer_steps=1",
        "rollout.context_length=48",
        "verify.max_failed_share=1",
    )
    (tmp_path / "params").symlink_to(running.Path.cwd() / "params")
    monkeypatch.chdir(tmp_path)
    plans = [Plan(Algorithm("tree", None, small), 1e-3, seed, 900) for seed in (0, 1)]
    prepared(plans[0].params)
    first = make(plans, "first", 2)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    assert [own.seed for own in first] == [0, 1] and first == make(plans, "again", 1)
    assert files == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    for own in first:
        assert own.tokens[0] == 0 and own.tokens[-2] < 900 <= own.tokens[-1]
        assert len(own.tokens) == len(own.seconds) == len(own.accuracy) == len(own.weights)
    assert first[0].accuracy != first[1].accuracy or first[0].tokens != first[1].tokens
