"""A critic in an analysis: warmed as in a run, held fixed, and judged on questions that it has not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spo_core.analysis import warmed as module
from spo_core.analysis.candidates import Candidate, warming
from spo_core.analysis.measure import measure, read_credited, read_values
from spo_core.analysis.truth import choose_pairs, cut_within, measure_states
from spo_core.analysis.warmed import critic_found, explained, read_warming, warm
from spo_core.credit import assign_credit
from spo_core.learn.critic import Critic, state_returns
from spo_core.system.files import file_digest
from spo_core.tree import read_trees
from tests.analysis.laboratory import Killed, candidate, laboratory, measured
from tests.invariants.test_training_runs import small

pytestmark = pytest.mark.slow

CRITIC = "credit.value={type: critic, warmup_iterations: 2, learning_rate: 0.01}"


def warmed_files(folder: Path) -> dict[str, str]:
    return {p.name: file_digest(p) for p in sorted(folder.glob("critic-*/0*/*")) if p.suffix != ".json"}


def test_its_credit_is_that_of_the_warmed_critic_on_questions_it_has_not_seen(paths, tmp_path):
    one = candidate("critic")
    (folder,) = measured(paths, tmp_path / "a", one, tokens=600)
    values, pairs = read_values(one, folder), read_credited(one, folder)
    trees = [tree for tree, _ in pairs]
    with laboratory(paths, tmp_path / "a", [one]) as bench:
        critic, took = warm(bench, one, folder)
        again = critic.values(trees)
    assert took == read_warming(one, folder) and took.iterations == 2
    for (tree, credit), own, new in zip(pairs, values, again, strict=True):
        assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(own, new, strict=True))
        expected = assign_credit(tree, one.params.credit, own)
        assert all(np.array_equal(a, b) for a, b in zip(expected.advantages, credit.advantages, strict=True))
    (last,) = (tmp_path / "a").glob("critic-*/00002")
    seen = read_trees(last / "trees.parquet")  # replay keeps both iterations
    assert {tree.iteration for tree in seen} == {1, 2} and len({tree.question_id for tree in seen}) == 8
    assert took.tokens == sum(tree.generated_tokens for tree in seen)
    assert not {tree.question_id for tree in seen} & {tree.question_id for tree in trees}
    assert np.ptp(np.concatenate([v for own in values for v in own[1:]])) > 0, "it has learnt something"


def test_killed_between_iterations_of_its_warming_ends_in_the_same_bits(paths, tmp_path, monkeypatch):
    one, calls = candidate("critic"), []
    measured(paths, tmp_path / "a", one, tokens=1)
    update = Critic.update

    def die(critic, trees, number):
        calls.append(number)
        if calls == [1, 2]:
            raise Killed
        return update(critic, trees, number)

    with monkeypatch.context() as patched, laboratory(paths, tmp_path / "b", [one]) as bench:
        patched.setattr(Critic, "update", die)
        with pytest.raises(Killed):
            measure(bench, one, tmp_path / "b" / "critic", 1)
        measure(bench, one, tmp_path / "b" / "critic", 1)
    assert calls == [1, 2, 2] and warmed_files(tmp_path / "a") == warmed_files(tmp_path / "b")


def test_candidates_of_one_critic_warm_it_once(paths, tmp_path, monkeypatch):
    pair = [
        Candidate(
            str(decay),
            small("rollout.branch_factors=[3, 2]", CRITIC, f"credit.advantage={{type: gae, lambda: {decay}}}"),
        )
        for decay in (0, 1)
    ]
    assert warming(pair[0]) == warming(pair[1]) != warming(candidate("critic"))
    made, original = [], Critic.update
    monkeypatch.setattr(Critic, "update", lambda *a: made.append(a) or original(*a))
    folders = measured(paths, tmp_path / "a", *pair, tokens=1)
    assert len(made) == 2 and len(list((tmp_path / "a").glob("critic-*"))) == 1
    values = [read_values(one, folder) for one, folder in zip(pair, folders, strict=True)]
    assert all(np.array_equal(a, b) for x, y in zip(*values, strict=True) for a, b in zip(x, y, strict=True))


def test_a_response_is_cut_where_its_values_are_looked_at(paths, tmp_path):
    one = candidate("critic")
    (folder,) = measured(paths, tmp_path / "a", one, tokens=400)
    pairs, values = read_credited(one, folder), read_values(one, folder)
    cut = [cut_within(pair, own, 0) for pair, own in zip(pairs, values, strict=True)]
    spines = set()
    for number, ((tree, _), own, (parts, credit)) in enumerate(zip(pairs, values, cut, strict=True)):
        first = next((i for i in tree.children[0] if len(tree.nodes[i].token_ids) > 2), None)
        if first is None:  # a policy that knows nothing may end at once
            assert parts is tree
            continue
        spines.add(number)
        assert np.array_equal(parts.completion(3), tree.completion(first)) and len(parts.nodes) == 4
        for node in (1, 2):
            assert credit.values[node] == own[first][parts.completion_lengths[node]]
    assert len(spines) > 2 and {(a, b) for i, a, b in choose_pairs(cut, 30, 0) if i in spines} == {(0, 1), (1, 2)}
    with laboratory(paths, tmp_path / "a", [one]) as bench:
        states = measure_states(bench, one, cut, folder / "states", states=4, rollouts=3)
    assert len(states) == 4 and all(0 <= s.position < 1 and 0 <= s.value <= 1 for s in states)


def test_a_tree_that_branches_is_looked_at_as_it_is(paths, tmp_path):
    one = candidate("tree")
    (folder,) = measured(paths, tmp_path / "a", one, tokens=1)
    for pair in read_credited(one, folder):
        assert cut_within(pair, state_returns(pair[0]), 0) is pair


def test_explained_variance_is_its_formula_and_its_error_that_of_leaving_questions_out(paths, tmp_path):
    one = candidate("critic")
    (folder,) = measured(paths, tmp_path / "a", one, tokens=600)
    trees, before = [tree for tree, _ in read_credited(one, folder)], read_values(one, folder)

    def naive(left: str | None) -> float:
        kept = [(t, v) for t, v in zip(trees, before, strict=True) if t.question_id != left]
        returns = np.concatenate([r for tree, _ in kept for r in state_returns(tree)[1:]])
        values = np.concatenate([v for _, own in kept for v in own[1:]])
        return 1 - ((returns - values) ** 2).sum() / ((returns - returns.mean()) ** 2).sum()

    questions = sorted({tree.question_id for tree in trees})
    without, n = np.array([naive(question) for question in questions]), len(questions)
    found = explained(trees, before)
    assert found.value == pytest.approx(naive(None))
    assert found.error == pytest.approx(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))
    whole = critic_found(trees, before, module.Warming(2, 7, 0.1))
    assert whole.explained == found and whole.warming.tokens == 7 and len(whole.by_quarter) == 4
