"""True values: sampled as the policy would, held against values that are summed over every continuation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_core.analysis.candidates import Candidate
from spo_core.analysis.measure import measure, read_credited
from spo_core.analysis.truth import State, calibration, choose_pairs, error, measure_states, ranking
from spo_core.config import load_params
from spo_core.credit import assign_credit
from spo_core.policy.checkpoint import stop_ids
from spo_core.rollout.decoding import make_decode
from spo_core.rollout.seeds import derive_seed
from tests.analysis.laboratory import SHAPES, laboratory
from tests.conftest import ROOT, random_tree
from tests.invariants.test_training_runs import prepared, small

CREDIT = load_params(ROOT).credit


def credited(seed: int, count: int):
    rng = np.random.default_rng(seed)
    trees = [random_tree(rng, depth=3, widest=3, longest=2, vocabulary=6) for _ in range(count)]
    return [(replace(tree, question_id=f"q{i}"), assign_credit(tree, CREDIT)) for i, tree in enumerate(trees)]


@given(st.integers(0, 10_000), st.integers(0, 6), st.integers(0, 30))
@settings(max_examples=80, deadline=None)
def test_pairs_are_siblings_or_follow_one_another_one_a_tree_first(seed, trees, count):
    pairs = credited(seed, trees)
    chosen = choose_pairs(pairs, count, seed)
    assert chosen == choose_pairs(pairs, count, seed) and len(set(chosen)) == len(chosen) <= count
    for number, *nodes in chosen:
        tree, credit = pairs[number]
        a, b = nodes
        assert a < b and all(tree.children[i] and math.isfinite(credit.values[i]) for i in nodes)
        assert tree.nodes[a].parent == tree.nodes[b].parent or tree.nodes[b].parent == a
        assert not np.array_equal(tree.completion(a), tree.completion(b))
    usable = {number for number, *_ in choose_pairs(pairs, 10**6, seed)}
    assert len({number for number, *_ in chosen}) == min(count, len(usable))
    larger = choose_pairs(pairs, count + 3, seed)
    assert larger[: len(chosen)] == chosen


def test_siblings_come_before_states_of_one_path():
    for number, a, b in choose_pairs(pairs := credited(1, 40), 10**6, 0):
        tree = pairs[number][0]
        inner = [i for i, below in enumerate(tree.children) if below]
        siblings = [
            (i, j)
            for i in inner
            for j in inner
            if i < j
            and tree.nodes[i].parent == tree.nodes[j].parent
            and not np.array_equal(tree.nodes[i].token_ids, tree.nodes[j].token_ids)
        ]
        assert (a, b) in siblings or (not siblings and tree.nodes[b].parent == a)


SHORT = (
    "rollout.max_completion_tokens=3",
    "credit.partition={type: fixed_tokens, tokens: 1}",
    "rollout.branch_factors=[3, 3, 1]",
    "rollout.temperature=0.8",
)


def exact_value(model, stops: frozenset[int], decode, prompt: np.ndarray, response: np.ndarray, left: int) -> float:
    """Sum over all continuations of up to ``left`` tokens; rewarded is an even number of characters."""
    ids = torch.tensor(np.concatenate([prompt, response]), dtype=torch.long)
    with torch.no_grad():
        chances = (model(ids[None]).logits[0, -1].double() / 0.8).softmax(-1).tolist()
    total = 0.0
    for token, chance in enumerate(chances):
        longer = np.append(response, token).astype(np.int32)
        if token in stops or left == 1:
            total += chance * (len(decode(longer)) % 2 == 0)
        else:
            total += chance * exact_value(model, stops, decode, prompt, longer, left - 1)
    return total


def test_true_values_are_those_of_an_enumeration(tmp_path, policy, tokenizer, monkeypatch):
    paths = prepared(tmp_path, policy, tokenizer, monkeypatch)
    one, rollouts = Candidate("tree", small(*SHORT)), 200
    with laboratory(paths, tmp_path / "a", [one]) as bench:
        measure(bench, one, tmp_path / "a" / "tree", 1)
        pairs = read_credited(one, tmp_path / "a" / "tree")
        states = measure_states(bench, one, pairs, tmp_path / "states", states=16, rollouts=rollouts)
        chosen = choose_pairs(pairs, 8, derive_seed(one.params.run.seed, "states", one.name))
        model, stops, decode = bench.working, frozenset(stop_ids(bench.working, tokenizer)), make_decode(tokenizer)
        scores = []
        for state, (number, node) in zip(states, [(n, i) for n, *nodes in chosen for i in nodes], strict=True):
            tree, credit = pairs[number]
            assert (state.question_id, state.depth) == (tree.question_id, tree.depths[node])
            assert state.value == credit.values[node]
            response = tree.completion(node)
            true = exact_value(model, stops, decode, tree.nodes[0].token_ids, response, 3 - len(response))
            scores.append((state.truth - true) / math.sqrt(true * (1 - true) / rollouts))
            mean = state.truth
            assert state.noise == pytest.approx(mean * (1 - mean) / (rollouts - 1))
            assert 0 < state.position <= 1
    assert len(scores) == 16 and max(map(abs, scores)) < 4
    assert 0.3 < np.mean(np.square(scores)) < 2.5


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", ["tree", "chain", "adaptive"])
def test_killed_resumed_and_with_more_states(name, tmp_path, policy, tokenizer, monkeypatch):
    paths, one = prepared(tmp_path, policy, tokenizer, monkeypatch), Candidate(name, SHAPES[name])
    with laboratory(paths, tmp_path / "a", [one]) as bench:
        measure(bench, one, tmp_path / "a" / name, 1)
        pairs = read_credited(one, tmp_path / "a" / name)

        def states(folder: str, count: int, progress=None) -> list[State]:
            return measure_states(bench, one, pairs, tmp_path / folder, states=count, rollouts=3, progress=progress)

        straight = states("straight", 18)
        assert len(straight) == 18 and len({s.pair for s in straight}) == 9

        def die(done: int, total: int) -> None:
            assert (done, total) == (8, 18)
            raise Killed

        with pytest.raises(Killed):
            states("killed", 18, die)
        stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "killed").iterdir()}
        assert len(stamps) == 1 and states("killed", 18) == straight
        assert {p: p.stat().st_mtime_ns for p in stamps} == stamps, "the block that was there is kept"
        few = states("grown", 4)
        assert few == straight[:4] and states("grown", 18) == straight
        told = []
        assert states("straight", 18, lambda done, total: told.append((done, total))) == straight
        assert told == [(8, 18), (16, 18), (18, 18)]


def test_an_estimator_without_values_has_no_states(tmp_path, policy, tokenizer, monkeypatch):
    paths, one = prepared(tmp_path, policy, tokenizer, monkeypatch), Candidate("whole", SHAPES["whole"])
    with laboratory(paths, tmp_path / "a", [one]) as bench:
        measure(bench, one, tmp_path / "a" / "whole", 1)
        trees = read_credited(one, tmp_path / "a" / "whole")
        assert measure_states(bench, one, trees, tmp_path / "s", states=8, rollouts=3) == []


def drawn(rng: np.random.Generator, count: int, off: float, rollouts: int = 50) -> list[State]:
    """Values that are ``off`` by a Gaussian; truths of so many rollouts."""
    found = []
    for number in range(count):
        true = rng.uniform(0.1, 0.9)
        rewards = rng.random(rollouts) < true
        value = true + off * rng.normal()
        found.append(
            State(f"q{number // 2}", number // 2, 1, 0.5, value, rewards.mean(), rewards.var(ddof=1) / rollouts)
        )
    return found


def test_the_error_leaves_out_the_truth_s_own_noise_and_covers():
    rng = np.random.default_rng(0)
    found = [error(drawn(rng, 80, 0.2)) for _ in range(300)]
    assert np.mean([f.value**2 for f in found]) == pytest.approx(0.04, rel=0.03)
    assert 0.88 < np.mean([abs(f.value - 0.2) < 2 * f.error for f in found]) < 0.99
    exact = [error(drawn(rng, 80, 0.0)).value for _ in range(100)]
    assert np.mean(exact) < 0.03, "not the 0.06 that 50 rollouts are off"


def test_states_of_one_question_are_no_independent_ones():
    states = drawn(np.random.default_rng(1), 40, 0.2)
    twice = [*states, *states]
    assert error(twice).value == pytest.approx(error(states).value)
    assert error(twice).error == pytest.approx(error(states).error)
    one = [replace(s, question_id="q") for s in states]
    assert math.isnan(error(one).error) and error(one).value == pytest.approx(error(states).value)
    assert math.isnan(error([]).value) and math.isnan(error([]).error)


def test_calibration_is_a_loop_over_five_bins():
    states = drawn(np.random.default_rng(2), 60, 0.1)
    values = [s.value for s in states]
    low, width = min(values), (max(values) - min(values)) / 5
    expected = []
    for b in range(5):
        own = [s for s in states if b == min(4, int((s.value - low) / width))]
        if own:
            expected.append((np.mean([s.value for s in own]), np.mean([s.truth for s in own]), len(own)))
    found = calibration(states)
    assert sum(count for *_, count in found) == 60 and len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs)
    same = [replace(s, value=0.5) for s in states]
    assert calibration(same) == [(0.5, pytest.approx(np.mean([s.truth for s in states])), 60)]
    assert calibration([]) == []


def pair(number: int, values: tuple[float, float], truths: tuple[float, float], noise: float = 0.0) -> list[State]:
    return [State("q", number, 1, 0.5, v, t, noise) for v, t in zip(values, truths, strict=True)]


def test_ranking_counts_pairs_whose_true_order_is_known():
    """Two right, one wrong, one tied; one is closer than two standard errors of its truths, one alone."""
    states = [
        *pair(0, (0.2, 0.8), (0.1, 0.9)),
        *pair(1, (0.8, 0.2), (0.9, 0.1)),
        *pair(2, (0.8, 0.2), (0.1, 0.9)),
        *pair(3, (0.5, 0.5), (0.1, 0.9)),
        *pair(4, (0.2, 0.8), (0.4, 0.6), noise=0.02),
        pair(5, (0.2, 0.8), (0.1, 0.9))[0],
    ]
    found = ranking(states)
    assert (found.right.value, found.wrong.value, found.tied.value) == (0.5, 0.25, 0.25)
    assert (found.pairs, found.close) == (4, 1)
    assert found.wrong.error == pytest.approx(math.sqrt(0.25 * 0.75 / 4))
    assert ranking(states[::-1]) == found
    barely = ranking(pair(0, (0.2, 0.8), (0.4, 0.6), noise=0.0049))
    assert (barely.pairs, barely.close) == (1, 0)
    assert math.isnan(ranking([]).right.value)
