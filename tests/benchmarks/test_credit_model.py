"""The model of credit is the product's credit on the model's trees; its expectations are those of an enumeration."""

from __future__ import annotations

import json
import math
from itertools import product

import numpy as np
import pytest

from benchmarks import credit_model
from benchmarks.credit_model import CANDIDATES, efficiency, measure
from benchmarks.decisions import (
    Candidate,
    Sample,
    Setting,
    batch_advantages,
    batch_values,
    chain,
    draw,
    exact,
    gradients,
    group,
    rollout_trees,
    tree,
)
from spo_core.credit import assign_credit, segment_credit
from spo_core.tree import RolloutTree
from tests.conftest import ROOT

each_candidate = pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda candidate: candidate.name)


def credited(sample: Sample, candidate: Candidate) -> tuple[np.ndarray, np.ndarray]:
    params = candidate.credit(sample.setting)
    values = batch_values(sample, params)
    return values, batch_advantages(sample, values, params)


def naive_gradient(sampled: RolloutTree, candidate: Candidate, setting: Setting, facts: np.ndarray) -> np.ndarray:
    """Sum over tokens of mask, advantage and score, from what the product would train on."""
    credit, total = assign_credit(sampled, candidate.credit(setting)), np.zeros(setting.logits + setting.coins)
    for node, advantages, mask in zip(sampled.nodes, credit.advantages, credit.masks, strict=True):
        for token, advantage, trained in zip(node.token_ids.tolist(), advantages, mask, strict=True):
            decision, coin = divmod(token // 2, 1 + setting.coins)
            place = setting.logits + coin - 1 if coin else facts[decision]
            score = token % 2 - (0.5 if coin else 1 - setting.eps)
            total[place] += advantage * score if trained else 0
    return total


@each_candidate
def test_values_advantages_and_gradients_are_the_product_s(candidate):
    setting = Setting(decisions=8, eps=0.15, coins=2, facts=5)
    rng = np.random.default_rng(0)
    sample = draw(setting, candidate.shape(setting), 12, rng, candidate.first)
    facts = rng.integers(0, 5, (12, 8))
    values, advantages = credited(sample, candidate)
    vectors = gradients(sample, advantages, facts)
    assert np.abs(advantages).max() > 0
    assert (sample.tokens() < 3 * sum(s.stop - s.start for s in sample.shape)).any() == bool(candidate.first)
    for number, sampled in enumerate(rollout_trees(sample)):
        own_values, own_advantages = segment_credit(sampled, candidate.credit(setting))
        there = sample.sampled()[:, number]
        assert values[there, number] == pytest.approx(own_values, abs=1e-12, nan_ok=True)
        assert advantages[there, number] == pytest.approx(own_advantages, abs=1e-9)
        naive = naive_gradient(sampled, candidate, setting, facts[number])
        assert vectors[number] == pytest.approx(naive, abs=1e-5)
        assert sampled.generated_tokens == sample.tokens()[number]
        assert all(sampled.completion_lengths[leaf] == setting.tokens for leaf in sampled.leaves)


@pytest.mark.parametrize(("coins", "facts"), [(0, None), (3, 7)])
def test_draws_have_the_model_s_rates(coins, facts):
    setting = Setting(decisions=6, eps=0.2, coins=coins, facts=facts)
    (candidate,) = (c for c in CANDIDATES if c.name == "2-2-2")
    sample = draw(setting, candidate.shape(setting), 20_000, np.random.default_rng(1))
    right = np.concatenate([r.ravel() for r in sample.right])
    assert right.mean() == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / len(right)))
    tossed = np.concatenate([c.ravel() for c in sample.coins])
    assert not coins or tossed.mean() == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / len(tossed)))
    assert sample.all_right()[-1].mean() == pytest.approx(setting.value(0), abs=0.015)


def every_outcome(setting: Setting, candidate: Candidate) -> tuple[Sample, np.ndarray]:
    """All outcomes of a tree's decisions and coins, and the probability of each."""
    shape = candidate.shape(setting)
    sizes = [(s.stop - s.start, 1 + setting.coins) for s in shape]
    bits = np.array(list(product((False, True), repeat=sum(n * width for n, width in sizes))))
    parts = np.split(bits, np.cumsum([n * width for n, width in sizes])[:-1], axis=1)
    places = [part.reshape(-1, *size) for part, size in zip(parts, sizes, strict=True)]
    sample = Sample(setting, shape, [p[..., 0] for p in places], [p[..., 1:] for p in places], candidate.first)
    chances = np.ones(len(bits))
    for right in sample.right:
        chances *= np.where(right, 1 - setting.eps, setting.eps).prod(axis=1)
    return sample, chances * 0.5 ** sum(n * setting.coins for n, _ in sizes)


def moments(setting: Setting, candidate: Candidate) -> tuple[np.ndarray, float, float]:
    """E g, tr Cov(g) and E T of one tree, exactly."""
    sample, chances = every_outcome(setting, candidate)
    assert chances.sum() == pytest.approx(1)
    vectors = gradients(sample, credited(sample, candidate)[1], None).astype(np.float64)
    mean = chances @ vectors
    return mean, float(chances @ (vectors**2).sum(axis=1) - mean @ mean), float(chances @ sample.tokens())


PAIR = Setting(decisions=2, eps=0.2, coins=0)
STYLED = Setting(decisions=2, eps=0.2, coins=1)
THREE = Setting(decisions=3, eps=0.2, coins=0)


@pytest.mark.parametrize(
    ("setting", "candidate", "times"),
    [
        (PAIR, group(4, "leave_one_out"), [4, 4]),  # 4 responses
        (STYLED, group(2, "leave_one_out"), [2, 2, 0]),  # style decides nothing
        (PAIR, tree(2, 2), [2 / 2, 4 / 2]),  # 2 and 4 segments, each with (n - 1) / n of the difference to siblings
        (STYLED, tree(2, 2), [2 / 2, 4 / 2, 0]),
        (PAIR, tree(3, 2), [3 * 2 / 3, 6 / 2]),
        (THREE, chain(2, 1), [0, 1, 1]),  # the prompt is not valued, so nothing is learned before the first cut
        (THREE, chain(1, 2), [0, 0, 1]),  # the longer of two parts stands first
        (THREE, exact(2), [1, 1, 1]),
        (THREE, exact(None), [1, 1, 1]),
    ],
    ids=lambda value: value.name if isinstance(value, Candidate) else None,
)
def test_the_mean_gradient_is_the_true_one_times_what_the_estimator_claims(setting, candidate, times):
    """d E[reward] / d logit = Cov(reward, score) = (1 - eps)^N eps for each decision, 0 for coins."""
    true = (1 - setting.eps) ** setting.decisions * setting.eps
    assert moments(setting, candidate)[0] == pytest.approx(np.array(times) * true, abs=1e-6)


def test_grpo_points_where_rloo_does_and_weighs_rare_outcomes_more():
    """Dividing by the standard deviation changes no direction within a question, but questions' weights."""
    weights = {}
    for eps in (0.02, 0.3):  # 0.96 and 0.49 of the responses are right
        setting = Setting(decisions=2, eps=eps, coins=0)
        grpo, rloo = (moments(setting, group(6, kind))[0] for kind in ("group_normalized", "leave_one_out"))
        assert grpo / np.linalg.norm(grpo) == pytest.approx(rloo / np.linalg.norm(rloo))
        weights[eps] = np.linalg.norm(grpo) / np.linalg.norm(rloo)
    assert weights[0.02] > 1.1 * weights[0.3]


def test_style_costs_whole_responses_most_and_shorter_segments_less():
    """How many times less efficient one coin a decision makes each, by enumeration."""
    plain, styled = (Setting(decisions=3, eps=0.2, coins=coins) for coins in (0, 1))
    found = {}
    for setting in (plain, styled):
        for candidate in (group(2, "leave_one_out"), exact(None), exact(2)):
            mean, variance, _ = moments(setting, candidate)
            found[setting.coins, candidate.name] = mean @ mean / variance
    losses = {name: found[0, name] / found[1, name] for _, name in found}
    assert losses["RLOO-2"] > losses["exact, 2 segments"] > losses["exact, every decision"] > 1


@pytest.mark.parametrize(
    ("setting", "candidate"),
    [
        (PAIR, group(3, "group_normalized")),
        (STYLED, tree(2, 2)),
        (PAIR, tree(3, 3, first=2)),
        (THREE, chain(2, 2)),
        (Setting(decisions=4, eps=0.1, coins=1), exact(2)),
    ],
    ids=lambda value: value.name if isinstance(value, Candidate) else None,
)
def test_measured_efficiency_is_that_of_the_enumeration(setting, candidate):
    mean, variance, tokens = moments(setting, candidate)
    found = measure(setting, candidate, 20_000, np.random.default_rng(2))
    truth = 1e6 * (mean @ mean) / variance / tokens
    assert found.error < 0.1 * truth and abs(found.per_million - truth) < 4 * found.error
    cosine = mean[: setting.logits].sum() / math.sqrt(setting.logits) / np.linalg.norm(mean)
    assert found.cosine == pytest.approx(cosine, abs=0.02)


def test_efficiency_of_noise_is_zero_within_its_error_and_errors_are_those_of_repetitions():
    rng = np.random.default_rng(3)
    centre = np.array([0.3, 0.0, 0.1, 0.0])
    for shift in (np.zeros(4), centre):
        runs = [efficiency(rng.normal(shift, 1.0, (200, 2, 4)), np.ones(200), 1) for _ in range(300)]
        values = np.array([run.per_million for run in runs])
        truth = 1e6 * (shift @ shift) / 4
        assert values.mean() == pytest.approx(truth, abs=4 * values.std() / math.sqrt(300) + 0.03 * truth)
        stated = math.sqrt(np.mean([run.error**2 for run in runs]))
        assert 0.85 < stated / values.std() < 1.5  # to first order: too wide where there is no signal


@pytest.mark.parametrize(
    ("setting", "name", "expected"),
    [
        (credit_model.SAME[1], "6-2-2", 0.61),
        (credit_model.SAME[2], "RLOO-8", 0.99),
        (credit_model.SAME[2], "4-4-4", 2.8),
        (credit_model.SAME[2], "4-4-4-4", 4.6),
        (credit_model.SAME[2], "exact, every decision", 7.5),
        (credit_model.FACTS[0], "GRPO-16", 0.71),
        (credit_model.FACTS[0], "3-3-3", 0.43),
        (credit_model.FACTS[0], "6-6-6", 0.08),
    ],
)
def test_figures_are_those_of_another_implementation(setting, name, expected):
    """Its figures have two digits, from a few thousand questions each; we take 5 % and a rounding for its errors."""
    (candidate,) = (c for c in CANDIDATES if c.name == name)
    ours, baseline = (
        measure(setting, c, 2000, np.random.default_rng([4, i])) for i, c in enumerate((candidate, CANDIDATES[0]))
    )
    relative, error = ours.relative_to(baseline)
    assert abs(relative - expected) < 3 * math.hypot(error, 0.05 * expected) + 0.005


def test_the_page_quotes_the_results():
    report = json.loads((ROOT / "benchmarks" / "results" / "credit_model.json").read_text())
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    quoted = page.partition("<!-- benchmarks.credit_model -->\n")[2].partition("<!-- end -->")[0]
    assert quoted.strip().splitlines() == credit_model.lines(report)
    settings = [{key: s[key] for key in Setting.model_fields} for s in report["settings"]]
    assert settings == [s.model_dump() for s in credit_model.SAME + credit_model.FACTS]
    assert [row["candidate"] for row in report["settings"][0]["candidates"]] == [c.name for c in CANDIDATES]
