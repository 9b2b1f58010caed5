"""Value rollouts of a prover are its own samples, and nothing else of a tree changes."""

import copy

import numpy as np
import pytest
import torch

from spo_core.config import CreditParams, LearnParams, RolloutParams, load_params
from spo_core.errors import ConfigError, EngineError
from spo_core.learn.precision import working_copy
from spo_core.policy.checkpoint import load_policy, save_policy
from spo_core.rollout.engines import make_engine
from spo_core.rollout.prover import ProvingEngine, fitting_prover, load_prover
from spo_core.rollout.sampler import Sampler
from spo_core.rollout.transformers_engine import TransformersEngine
from tests.conftest import ROOT
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
    found = load_prover(fitting_prover("prover", tmp_path / "policy", policy, tokenizer), policy)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), other.parameters(), strict=True))
    assert not any(p.requires_grad for p in found.parameters())
    with pytest.raises(ConfigError, match=r"credit\.value\.prover: no policy in .*nowhere"):
        fitting_prover("nowhere", tmp_path / "policy", policy, tokenizer)
    more = copy.deepcopy(tokenizer)
    more.add_tokens(["<more>"])
    with pytest.raises(ConfigError, match=r"credit\.value\.prover: .*prover has other tokens"):
        fitting_prover("prover", tmp_path / "policy", policy, more)


def test_a_prover_computes_in_the_dtype_of_the_policy_that_is_sampled(policy, tokenizer, tmp_path, other):
    """Its weights are rounded as a working copy's are, and positions keep their digits."""
    save_policy(other, tokenizer, tmp_path)
    half = LearnParams(learning_rate=1.0, dtype="bfloat16")
    found, expected = load_prover(tmp_path, working_copy(policy, half)), working_copy(other, half)
    both = zip(found.parameters(), expected.parameters(), strict=True)
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in both)
    assert all(a.dtype == b.dtype for a, b in zip(found.buffers(), expected.buffers(), strict=True))
    engine = ProvingEngine(engine_of(working_copy(policy, half)), engine_of(found))
    engine.policy_changed(4)
    assert any(not node.trainable for tree in grow(engine, CHAIN) for node in tree.nodes)


def test_a_prover_sleeps_with_the_policy_and_is_never_changed():
    """What both engines are told: the prover's version is always 0."""

    class Told:
        gives_entropies, version, restarts, busy = False, None, 0, False

        def __init__(self):
            self.log = []

        def policy_changed(self, version):
            self.version = version
            self.log.append(version)

        def sleep(self):
            self.version = None
            self.log.append("sleep")

    policy, prover = Told(), Told()
    engine = ProvingEngine(policy, prover)
    for version in (3, 4):
        engine.policy_changed(version)
        engine.sleep()
    assert policy.log == [3, "sleep", 4, "sleep"] and prover.log == [0, "sleep", 0, "sleep"]


def test_on_vllm_servers_a_prover_has_as_many_of_its_own(policy, tokenizer, tmp_path, other, monkeypatch):
    """On the GPUs behind the policy's, from the prover's folder, with noise of its own; both end where one fails."""
    for name, model in (("policy", policy), ("prover", other)):
        save_policy(model, tokenizer, tmp_path / name)
    monkeypatch.setattr("spo_core.rollout.prover.project", lambda: tmp_path)
    made, ended = [], []

    class Group:
        gives_entropies, version, restarts = False, None, 0

        def __init__(self, settings, engine, save, folder):
            if len(made) == 3:
                raise EngineError("no memory")
            save(tmp_path / f"saved{len(made)}")
            made.append((settings, engine, folder))

        def policy_changed(self, version):
            self.version = version

        def close(self):
            ended.append(self)

    monkeypatch.setattr("spo_core.rollout.vllm.group.VllmGroup", Group)
    engine = "rollout.engine={type: vllm, servers: 3, tensor_parallel: 2, first_gpu: 1, seeded: false}"
    params = load_params(ROOT, "pav", (engine, "credit.value.prover=prover"))
    places = {"policy": tmp_path / "policy", "folder": tmp_path / "engine"}
    proving = make_engine(params, policy, tokenizer, **places)
    assert isinstance(proving, ProvingEngine) and len(made) == 2
    (hers, her_engine, _), (his, his_engine, _) = made
    assert (her_engine.first_gpu, his_engine.first_gpu) == (1 + 3 * 2, 1) and her_engine.servers == 3
    assert hers.arguments["model"] == str(tmp_path / "prover") and his.arguments["model"] == str(tmp_path / "policy")
    assert hers.noise != his.noise and hers.stop_ids == his.stop_ids
    saved = [load_policy(tmp_path / f"saved{n}")[0] for n in (0, 1)]
    for model, found in zip((other, policy), saved, strict=True):
        assert all(map(torch.equal, model.parameters(), found.parameters()))
    with pytest.raises(EngineError, match="no memory"):
        make_engine(params, policy, tokenizer, **places)
    assert len(ended) == 1
