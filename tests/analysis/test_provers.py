"""Provers in an analysis: each candidate's value rollouts are its own prover's, all else the analysed policy's."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from spo_core.analysis.bench import opened
from spo_core.analysis.candidates import Candidate, identity
from spo_core.analysis.measure import read_credited
from spo_core.analysis.truth import sample_from
from spo_core.errors import ConfigError
from spo_core.policy.checkpoint import load_policy, save_policy
from spo_core.system.files import folder_digest
from tasks.analysis import AnalysisSpec
from tests.analysis.laboratory import FEW_CUTS, SHAPES, laboratory, measured
from tests.invariants.test_training_runs import small
from tests.learn.test_gradient import TEMPERATURE, logprobs

pytestmark = pytest.mark.slow

ENTROPY = "credit.partition={type: entropy, threshold: 0.5, interval: 8}"


def chain(name: str, prover: str | None, cuts: str = FEW_CUTS) -> Candidate:
    overrides = ("rollout.branch_factors=[2]", cuts, f"rollout.temperature={TEMPERATURE}", "rollout.questions=4")
    if prover is None:
        return Candidate(name, small(*overrides, preset="spo-chain"))
    return Candidate(name, small(*overrides, f"credit.value.prover={prover}", preset="pav"))


@pytest.fixture
def policies(paths, tmp_path, tokenizer, monkeypatch):
    """The analysed policy, the one that training began with, and another; the last two in folders of their names."""
    monkeypatch.setattr("spo_core.rollout.prover.project", lambda: tmp_path)
    found = {"own": load_policy(paths.checkpoint("warmup"))[0].eval()}
    for name, factor in (("began", 1.3), ("other", 0.7)):
        found[name] = copy.deepcopy(found["own"])
        with torch.no_grad():
            for parameter in found[name].parameters():
                parameter.mul_(factor)
        save_policy(found[name], tokenizer, tmp_path / name)
    return found


def test_value_rollouts_are_those_of_each_candidate_s_own_prover(paths, policies, tmp_path):
    """Beside one that asks for entropies and has no prover, in any order."""
    provers = {"began": "first", "other": "other", "own": None}
    candidates = [chain(name, prover, ENTROPY if prover is None else FEW_CUTS) for name, prover in provers.items()]
    folders = measured(paths, tmp_path / "a", *candidates, tokens=1, first=tmp_path / "began")
    turned = measured(paths, tmp_path / "b", *candidates[::-1], tokens=1, first=tmp_path / "began")[::-1]
    for candidate, folder, again in zip(candidates, folders, turned, strict=True):
        trees = [tree for tree, _ in read_credited(candidate, folder)]
        assert any(not node.trainable for tree in trees for node in tree.nodes)
        for tree, same in zip(trees, [tree for tree, _ in read_credited(candidate, again)], strict=True):
            assert all(np.array_equal(a.token_ids, b.token_ids) for a, b in zip(tree.nodes, same.nodes, strict=True))
        for tree in trees[:2]:
            for index, node in enumerate(tree.nodes[1:], start=1):
                by = policies["own" if node.trainable else candidate.name]
                with torch.no_grad():
                    assert logprobs(by, tree, index).numpy() == pytest.approx(node.logprobs, abs=1e-3)


def test_true_values_are_the_prover_s(paths, policies, tmp_path, monkeypatch):
    """A state's truth is asked of whoever its value is a mean of."""
    asked = []
    for name, prover in (("other", "other"), ("own", None)):
        one = chain(name, prover)
        (folder,) = measured(paths, tmp_path / "a", one, tokens=1)
        tree = read_credited(one, folder)[0][0]
        inner = next(i for i, below in enumerate(tree.children) if below)
        with laboratory(paths, tmp_path / "a", [one]) as bench:
            engine = bench.engines[prover]
            submit = engine.submit

            def noted(requests, submit=submit):
                requests = list(requests)
                asked.append({request.prover for request in requests if request.tree})
                submit(requests)

            monkeypatch.setattr(engine, "submit", noted)
            rewards = sample_from(bench, one, [(tree, inner)], 3)
        assert rewards.shape == (1, 3) and asked[-1] == {prover is not None}


def test_what_was_measured_with_other_policies_is_measured_anew(policies, tmp_path):
    """By digests of the prover and of the reference; none where the analysed policy is both."""

    def model(name: str) -> SimpleNamespace:
        return SimpleNamespace(folder=tmp_path / name, digest=folder_digest(tmp_path / name))

    candidates = (chain("first", "first"), chain("other", "other"), Candidate("pairs", SHAPES["pairs"]))
    began, other = model("began"), model("other")

    def found(own, start) -> list[tuple[str | None, str | None]]:
        spec = AnalysisSpec(None, candidates, own, start, 1, 0, 2, "name")
        assert spec.all[-1].prover is None and spec.all[-1].reference is None, "the plain estimator needs neither"
        return [(one.prover, one.reference) for one in spec.all[:-1]]

    assert found(began, None) == found(began, began) == [(None, None), (other.digest, None), (None, None)]
    assert found(other, began) == [(began.digest, None), (None, None), (None, began.digest)]
    spec = AnalysisSpec(None, candidates, other, began, 1, 0, 2, "name")
    again = AnalysisSpec(None, candidates, other, None, 1, 0, 2, "name")
    differ = [identity(a) != identity(b) for a, b in zip(spec.all, again.all, strict=True)]
    assert differ == [True, False, True, False]


def test_several_provers_are_refused_with_vllm_whose_servers_have_one(paths, policies, tmp_path):
    engine = "rollout.engine={type: vllm, servers: 1}"
    candidates = [
        Candidate(name, small("rollout.branch_factors=[2]", engine, f"credit.value.prover={name}", preset="pav"))
        for name in ("first", "other")
    ]
    with (
        pytest.raises(ConfigError, match=r"candidates name first, other, and rollout\.engine vllm serves one prover"),
        opened(candidates, paths, paths.checkpoint("warmup"), tmp_path / "a"),
    ):
        pass
