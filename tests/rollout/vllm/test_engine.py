"""vLLM in this process: the plain model's probabilities, no memory of old weights, and a life after death."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from spo_core.config import CreditParams, RolloutParams, VllmEngineParams
from spo_core.errors import EngineError
from spo_core.rollout.probe import check_gap, probe
from spo_core.rollout.sampler import Prompt, Sampler
from spo_core.rollout.vllm.engine import VllmEngine
from spo_core.rollout.vllm.weights import CheckpointWeights
from tests.rollout.vllm.case import (
    CONTEXT,
    PROMPT,
    TEMPERATURE,
    TOP_P,
    assert_logprobs,
    drain,
    needs_vllm,
    request,
    settings_for,
    sharp_policy,
    tokens,
)

pytestmark = needs_vllm
TREE = {
    "partition": {"type": "fixed_tokens", "tokens": 32},
    "value": {"type": "tree_mean"},
    "advantage": {"type": "difference"},
    "mask": {"type": "all"},
}


@pytest.fixture(scope="module")
def policy(params, tokenizer):
    return sharp_policy(params, tokenizer)


@pytest.fixture(scope="module")
def started(policy, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    settings = settings_for(policy, tokenizer, folder, VllmEngineParams(type="vllm"))
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    engine = VllmEngine(settings, CheckpointWeights(policy, folder))
    assert (torch.get_num_threads(), torch.set_num_threads) == (threads, set_threads)
    with pytest.raises(RuntimeError, match="policy_changed comes first"):
        engine.submit([request(0)])
    yield engine
    engine.close()


@pytest.fixture
def engine(started):
    """The one engine of this file, at a version of its own for each test."""
    engine.count = getattr(engine, "count", 0) + 1
    started.policy_changed(100 * engine.count)
    yield started
    assert not started.busy


def test_logprobs_are_those_of_the_scaled_full_distribution(engine, policy):
    done = drain(engine, [request(n) for n in range(8)])
    assert len(done) == 8
    assert_logprobs(policy, PROMPT, done)
    assert any(np.exp(c.logprobs).min() < 0.5 for c in done.values()), "the policy of this test should hesitate"


def test_stop_ids_are_all_that_stops(engine, policy, monkeypatch):
    """The end-of-text token of the checkpoint's configuration does not, where it is none of them."""
    requests = [request(n, max_tokens=60) for n in range(24)]
    stopped = drain(engine, requests)
    assert any(c.stopped for c in stopped.values())
    for completion in stopped.values():
        ids = completion.token_ids.tolist()
        assert completion.stopped == (ids[-1] == 2) and 2 not in ids[:-1]
    monkeypatch.setattr(engine, "settings", replace(engine.settings, stop_ids=()))
    free = drain(engine, requests)
    assert {len(c.token_ids) for c in free.values()} == {60} and not any(c.stopped for c in free.values())
    assert all(free[n].token_ids.tolist()[: len(c.token_ids)] == c.token_ids.tolist() for n, c in stopped.items())


def test_tokens_depend_on_the_seed_alone(engine):
    alone = tokens(drain(engine, [request(3)]))[3]
    crowd = tokens(drain(engine, [request(n) for n in range(12)]))
    assert crowd[3] == alone and len({tuple(t) for t in crowd.values()}) > 6
    assert tokens(drain(engine, [request(n) for n in range(12)])) == crowd


def test_a_tree_grows_over_the_cache_of_its_prefixes(engine, policy):
    rollout = RolloutParams(
        questions=1, branch_factors=(6, 6, 6), context_length=CONTEXT, temperature=TEMPERATURE, top_p=TOP_P
    )
    grown = []
    for version in (7001, 7002):
        engine.policy_changed(version)
        sampler = Sampler(engine, rollout, CreditParams.model_validate(TREE), seed=5, iteration=1, version=version)
        grown.append(sampler.grow([Prompt("q", tuple(PROMPT))])[0])
        assert sampler.cached_tokens / sampler.prefix_tokens > 0.9
    tree, again = grown
    assert [n.token_ids.tolist() for n in tree.nodes] == [n.token_ids.tolist() for n in again.nodes]
    assert max(tree.depths) == 3 and len(tree.nodes) > 40
    for index in range(1, len(tree.nodes), 7):
        prefix = np.concatenate([tree.nodes[i].token_ids for i in tree.path(tree.nodes[index].parent)])
        assert_logprobs(policy, prefix.tolist(), {0: tree.nodes[index]})


def test_new_weights_never_meet_the_old_cache(engine, policy, monkeypatch):
    """Even where the cache itself is not emptied: its entries belong to another version."""
    monkeypatch.setattr(engine._vllm, "reset_prefix_cache", lambda: None)
    before = drain(engine, [request(0), request(1)])
    warm = drain(engine, [request(0)])
    assert warm[0].cached_tokens >= 64
    with torch.no_grad():
        policy.model.embed_tokens.weight.mul_(-1.0)
    engine.policy_changed(8001)
    after = drain(engine, [request(0)])
    assert after[0].cached_tokens == 0
    assert_logprobs(policy, PROMPT, after)
    assert tokens(after)[0] != tokens(before)[0]


def test_the_probe_sees_weights_that_were_not_synced(engine, policy):
    prompts = [Prompt(str(n), (*PROMPT, n + 3)) for n in range(3)]
    options = {"context_length": CONTEXT, "temperature": TEMPERATURE, "seed": 0}
    gap = probe(engine, policy, prompts, **options)
    assert gap.tokens > 3 and gap.largest < 1e-4
    check_gap(gap, 0.05, 1)
    with torch.no_grad():
        policy.model.embed_tokens.weight.mul_(-1.0)
    with pytest.raises(EngineError, match=r"policy version 9: .*explains at most 0\.05 \(learn\.max_logprob_gap\)"):
        check_gap(probe(engine, policy, prompts, **options), 0.05, 9)
    engine.policy_changed(8101)
    check_gap(probe(engine, policy, prompts, **options), 1e-4, 8101)


def test_a_sleeping_engine_wakes_with_new_weights_only(engine, policy):
    engine.sleep()
    assert engine.version is None and engine._vllm.is_sleeping()
    with pytest.raises(RuntimeError, match="policy_changed comes first"):
        engine.submit([request(0)])
    with torch.no_grad():
        policy.model.embed_tokens.weight.mul_(-1.0)
    engine.policy_changed(8201)
    assert not engine._vllm.is_sleeping()
    assert_logprobs(policy, PROMPT, drain(engine, [request(0)]))


def test_weights_may_not_change_under_a_request(engine):
    engine.submit([request(0)])
    for change in (lambda: engine.policy_changed(8301), engine.sleep):
        with pytest.raises(RuntimeError, match="being decoded"):
            change()
    drain(engine, [])


@pytest.mark.parametrize("max_tokens", [0, CONTEXT - len(PROMPT) + 1])
def test_no_request_may_exceed_the_context(engine, max_tokens):
    with pytest.raises(ValueError, match="after this prefix"):
        engine.submit([request(0, max_tokens=max_tokens)])


def test_a_failed_request_is_asked_again_with_its_seed(engine, monkeypatch):
    expected = tokens(drain(engine, [request(n) for n in range(4)]))
    step, failed = engine._vllm.step, []

    def failing():
        outputs = step()
        for output in outputs:
            if output.finished and output.request_id in "02" and failed.count(output.request_id) < 2:
                failed.append(output.request_id)
                output.outputs[0].finish_reason = "error"
        return outputs

    monkeypatch.setattr(engine._vllm, "step", failing)
    assert tokens(drain(engine, [request(n) for n in range(4)])) == expected
    assert sorted(failed) == ["0", "0", "2", "2"]


def test_a_dead_engine_is_started_again_once(engine, policy, monkeypatch):
    """The same tokens as in an undisturbed life; a second death ends the run with the engine's last words."""
    requests = [request(n, max_tokens=40) for n in range(6)]
    expected = tokens(drain(engine, requests))

    def kill(after: int):
        step, left = engine._vllm.step, iter(range(after))

        def dying():
            if next(left, None) is None:
                raise MemoryError("no memory left on the device")
            return step()

        monkeypatch.setattr(engine._vllm, "step", dying)

    kill(5)
    restarts = engine.restarts
    assert tokens(drain(engine, requests)) == expected
    assert engine.restarts == restarts + 1
    kill(3)
    with pytest.raises(EngineError, match="last words: MemoryError: no memory left on the device"):
        drain(engine, requests)
    engine._open.clear()
    engine._deaths = 0
    engine._restart(RuntimeError("so that the tests after this one have an engine"))
