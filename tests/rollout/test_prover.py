"""Value rollouts of a prover are its own samples, and nothing else of a tree changes."""

import copy

import numpy as np
import pytest
import torch

from spo_core.config import CreditParams, RolloutParams
from spo_core.errors import ConfigError
from spo_core.policy.checkpoint import save_policy
from spo_core.rollout.prover import ProvingEngine, load_prover
from spo_core.rollout.sampler import Sampler
from spo_core.rollout.transformers_engine import TransformersEngine
from tests.rollout.test_sampler import PROMPTS, plain

CHAIN = {
    "partition": {"type": "cutpoints", "interval": 2},
    "value": {"type": "monte_carlo", "rollouts": 3, "prompt": "always", "prover": "first"},
    "advantage": {"type": "best_of_k_progress", "own": "reward"},
    "mask": {"type": "all"},
}
ROLLOUT = RolloutParams(questions=2, branch_factors=(3,), context_length=24)


def engine_of(model) -> TransformersEngine:
    return TransformersEngine(model, stop_ids=(2,), context_length=24, max_concurrency=7)


def grow(engine, credit):
    return Sampler(engine, ROLLOUT, CreditParams.model_validate(credit), seed=1, iteration=1, version=4).grow(PROMPTS)


@pytest.fixture
def other(policy):
    found = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.mul_(0.7)
    return found


def test_who_samples_what(policy, other):
    engine = ProvingEngine(engine_of(policy), engine_of(other))
    engine.policy_changed(4)
    trees = grow(engine, CHAIN)
    assert engine.version == 4 and not engine.busy and not engine.policy._kept and not engine.prover._kept
    proved = 0
    for tree in trees:
        for index, node in enumerate(tree.nodes[1:], start=1):
            by = policy if node.trainable else other
            assert node.logprobs == pytest.approx(plain(by, tree, index), abs=2e-5)
            proved += not node.trainable
    assert proved
    alone = engine_of(policy)
    alone.policy_changed(4)
    same = grow(alone, CHAIN | {"value": CHAIN["value"] | {"prover": None}})
    for tree, own in zip(trees, same, strict=True):
        spine, expected = ([n for n in t.nodes if n.trainable] for t in (tree, own))
        assert all(np.array_equal(a.token_ids, b.token_ids) for a, b in zip(spine, expected, strict=True))


def test_an_engine_of_one_policy_is_refused(policy):
    with pytest.raises(ConfigError, match=r"credit\.value\.prover: the engine serves the policy alone"):
        grow(engine_of(policy), CHAIN)


def test_a_prover_is_there_and_has_the_policys_tokens(policy, tokenizer, tmp_path, other, monkeypatch):
    monkeypatch.setattr("spo_core.rollout.prover.project", lambda: tmp_path)
    save_policy(other, tokenizer, tmp_path / "prover")
    found = load_prover("prover", tmp_path / "policy", policy, tokenizer)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), other.parameters(), strict=True))
    assert not any(p.requires_grad for p in found.parameters())
    with pytest.raises(ConfigError, match=r"credit\.value\.prover: no policy in .*nowhere"):
        load_prover("nowhere", tmp_path / "policy", policy, tokenizer)
    more = copy.deepcopy(tokenizer)
    more.add_tokens(["<more>"])
    with pytest.raises(ConfigError, match=r"credit\.value\.prover: .*prover has other tokens"):
        load_prover("prover", tmp_path / "policy", policy, more)
