"""Two vLLM servers as one engine: the plain model's probabilities, no memory of old weights, deaths and their end.

The tests share one group and run in their order; the last ones kill its servers.
"""

from __future__ import annotations

import os
import signal

import pytest
import torch

from spo_core.config import VllmEngineParams
from spo_core.errors import EngineError
from spo_core.policy.checkpoint import save_policy
from spo_core.rollout.vllm import server as vllm_server
from spo_core.rollout.vllm.group import VllmGroup
from tests.rollout.vllm.case import (
    PROMPT,
    assert_logprobs,
    drain,
    needs_vllm,
    request,
    settings_for,
    sharp_policy,
    tokens,
)
from tests.rollout.vllm.test_replicas import assert_private, members, processes, until

pytestmark = [*needs_vllm, pytest.mark.exhaustive]  # in one process: test_vllm_engine.py
TWO = VllmEngineParams(type="vllm", servers=2)
ONE = VllmEngineParams(type="vllm", servers=1)


@pytest.fixture(scope="module")
def policy(params, tokenizer):
    return sharp_policy(params, tokenizer)


@pytest.fixture(scope="module")
def group(policy, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("group")
    settings = settings_for(policy, tokenizer, folder / "policy", TWO)
    opened = VllmGroup(settings, TWO, lambda target: save_policy(policy, tokenizer, target), folder / "engine")
    opened.policy_changed(1)
    yield opened
    pids = processes(opened)
    opened.close()
    until(lambda: not any(map(members, pids)))


def test_logprobs_are_those_of_the_scaled_full_distribution(group, policy):
    done = drain(group, [request(n) for n in range(16)])
    assert len(done) == 16 and len({tuple(t) for t in tokens(done).values()}) > 6
    assert_logprobs(policy, PROMPT, done)


def test_only_the_owner_reaches_a_server(group):
    assert_private(group)


def test_tokens_depend_on_the_seed_alone(group):
    crowd = tokens(drain(group, [request(n, tree=str(n % 3)) for n in range(12)]))
    assert tokens(drain(group, [request(n) for n in reversed(range(12))])) == crowd
    assert tokens(drain(group, [request(3)])) == {3: crowd[3]}


def test_a_tree_finds_its_prefixes_in_the_cache_of_one_server(group):
    prompts = {f"tree {k}": [k + 3, *PROMPT] for k in range(6)}
    roots = drain(group, [request(k, ids, tree=tree) for k, (tree, ids) in enumerate(prompts.items())])
    assert {c.cached_tokens for c in roots.values()} == {0}
    assert sorted(server.trees for server in group._replicas.servers) == [4, 5]  # three are the test before's
    children = [
        request(10 * k + child, [*prompts[tree], *roots[k].token_ids], tree=tree)
        for k, tree in enumerate(prompts)
        for child in range(6)
    ]
    assert {c.cached_tokens for c in drain(group, children).values()} == {64}


def test_new_weights_never_meet_the_old_cache(group, policy):
    assert drain(group, [request(0, tree="a")])[0].cached_tokens in (0, 64)
    assert drain(group, [request(0, tree="a")])[0].cached_tokens == 64
    with torch.no_grad():
        policy.model.embed_tokens.weight.mul_(-1.0)
    group.policy_changed(2)
    done = drain(group, [request(n, tree=str(n)) for n in range(2)])
    assert {c.cached_tokens for c in done.values()} == {0}
    assert_logprobs(policy, PROMPT, done)


def test_it_wakes_with_new_weights(group, policy):
    group.sleep()
    with pytest.raises(RuntimeError, match="policy_changed comes first"):
        group.submit([request(0)])
    with torch.no_grad():
        policy.model.embed_tokens.weight.mul_(-1.0)
    group.policy_changed(3)
    done = drain(group, [request(n) for n in range(2)])  # one for each server
    assert {c.cached_tokens for c in done.values()} == {0}
    assert_logprobs(policy, PROMPT, done)


def test_a_killed_server_changes_no_token_and_the_second_one_ends_the_run(group, policy):
    requests = [request(n, max_tokens=100) for n in range(64)]
    expected = tokens(drain(group, requests))
    group.submit(requests)
    os.killpg(processes(group)[1], signal.SIGKILL)
    done = {}
    while group.busy:
        done |= {c.request_id: c for c in group.step()}
    assert tokens(done) == expected and group.restarts == 1
    assert_logprobs(policy, PROMPT, done)

    log = group.folder / "server-0.log"
    assert "Loading safetensors" in log.read_text()
    group.submit(requests)
    os.killpg(processes(group)[0], signal.SIGKILL)
    with pytest.raises(EngineError, match=r"(?s)server 0 died after a restart.*server-0\.log") as error:
        while group.busy:
            group.step()
    assert all(line in str(error.value) for line in vllm_server.last_words(log.read_text()))
    group.close()  # it has two cores only; the next tests start servers of their own


def test_a_server_that_cannot_start_says_why(params, tokenizer, policy, tmp_path):
    settings = settings_for(policy, tokenizer, tmp_path / "policy", ONE)
    (tmp_path / "policy" / "model.safetensors").unlink()
    with pytest.raises(EngineError, match=r"(?s)server 0 did not start.*Cannot find any model weights"):
        VllmGroup(settings, ONE, lambda target: None, tmp_path / "engine")
