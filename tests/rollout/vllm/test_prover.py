"""A prover on vLLM's servers: its value rollouts have its own probabilities, before and after both slept."""

from __future__ import annotations

import copy

import pytest
import torch

from spo_core.config import load_params
from spo_core.policy.checkpoint import save_policy
from spo_core.rollout.engines import make_engine
from tests.conftest import ROOT
from tests.rollout.vllm.case import PROMPT, TEMPERATURE, assert_logprobs, drain, needs_vllm, request, sharp_policy
from tests.rollout.vllm.test_replicas import members, processes, until

pytestmark = [*needs_vllm, pytest.mark.exhaustive]


def test_policy_and_prover_sample_side_by_side(params, tokenizer, tmp_path):
    prover = sharp_policy(params, tokenizer)
    save_policy(prover, tokenizer, tmp_path / "policy")
    policy = copy.deepcopy(prover)
    engine = "rollout.engine={type: vllm, servers: 1, cache_gib: 0.25}"
    chosen = load_params(ROOT, "pav", (engine, f"rollout.temperature={TEMPERATURE}"))
    proving = make_engine(chosen, policy, tokenizer, policy=tmp_path / "policy", folder=tmp_path / "engine")
    pids = processes(proving.policy) + processes(proving.prover)
    try:
        for version in (1, 2):
            with torch.no_grad():
                for parameter in policy.parameters():
                    parameter.mul_(0.9)
            proving.policy_changed(version)
            done = drain(proving, [request(n, PROMPT[:20], prover=n % 2 == 1) for n in range(8)])
            for model, odd in ((policy, 0), (prover, 1)):
                own = {n: completion for n, completion in done.items() if n % 2 == odd}
                assert len(own) == 4
                assert_logprobs(model, PROMPT[:20], own)
            proving.sleep()
    finally:
        proving.close()
    until(lambda: not any(map(members, pids)))
