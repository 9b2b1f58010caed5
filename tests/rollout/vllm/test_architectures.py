"""vLLM in this process, with a policy of many parts: experts, a plain layer, a head that is tied to the embedding."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from spo_core.config import VllmEngineParams
from spo_core.rollout.probe import probe
from spo_core.rollout.sampler import Prompt
from spo_core.rollout.vllm.engine import VllmEngine
from spo_core.rollout.vllm.settings import vllm_settings
from spo_core.rollout.vllm.weights import CheckpointWeights
from tests.rollout.vllm.case import drain, needs_vllm, plain_logprobs, request, tokens

CONTEXT, TEMPERATURE = 128, 0.6
PROMPTS = [Prompt(str(n), (3, 4, 5, 6, 7, 8, n + 9)) for n in range(4)]
exhaustive = pytest.mark.exhaustive  # the same way with other rounding
pytestmark = needs_vllm


@pytest.fixture(scope="module", params=["float32", pytest.param("bfloat16", marks=exhaustive)])
def opened(request, tmp_path_factory):
    """Engine and policy; the policy is float32 whatever the engine is."""
    config = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        moe_intermediate_size=48,
        num_hidden_layers=2,
        mlp_only_layers=[0],
        num_experts=4,
        num_experts_per_tok=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = Qwen3MoeForCausalLM(config).eval()
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.normal_(0, 0.12) if parameter.dim() > 1 else parameter.uniform_(0.9, 1.1)
    folder = tmp_path_factory.mktemp("policy")
    policy.save_pretrained(folder)
    settings = vllm_settings(
        VllmEngineParams(type="vllm", dtype=request.param, cache_gib=0.25),
        folder,
        (2,),
        context_length=CONTEXT,
        max_concurrency=256,
        temperature=TEMPERATURE,
        top_p=1.0,
    )
    engine = VllmEngine(settings, CheckpointWeights(policy, folder))
    yield engine, policy
    engine.close()


def limit(engine: VllmEngine) -> float:
    """Nats a token that rounding alone may make."""
    return 1e-4 if engine.settings.arguments["dtype"] == "float32" else 0.05


def test_every_part_has_the_new_weights(opened):
    """Changed one after the other, so that none can hide behind the rest."""
    engine, policy = opened
    version = 10
    for name, parameter in policy.named_parameters():
        version += 1
        with torch.no_grad():
            wave = torch.sin(torch.arange(parameter.numel())).view_as(parameter)
            parameter.mul_(1.1).add_(0.3 * parameter.std() * wave)
        engine.policy_changed(version)
        gap = probe(engine, policy, PROMPTS, context_length=CONTEXT, temperature=TEMPERATURE, seed=version)
        assert gap.mean < limit(engine), name
        if version % 4 == 0:
            engine.sleep()


def test_a_tensor_that_does_not_come_is_an_error(opened):
    engine, policy = opened
    whole = dict(engine.weights())
    for missing in ("model.norm.weight", "model.layers.1.self_attn.o_proj.weight"):
        rest = iter([(name, tensor) for name, tensor in whole.items() if name != missing])
        with pytest.raises(ValueError, match=f"1 parameters have no new weights, first {missing}"):
            engine._vllm.collective_rpc("load_policy", kwargs={"weights_iterator": rest})
    engine.policy_changed(101)
    gap = probe(engine, policy, PROMPTS, context_length=CONTEXT, temperature=TEMPERATURE, seed=0)
    assert gap.mean < limit(engine)


def test_unseeded_requests_have_the_policys_distribution_and_noise_of_their_own(opened, monkeypatch):
    engine, policy = opened
    monkeypatch.setattr(engine, "settings", replace(engine.settings, noise=5))
    ids = PROMPTS[0].token_ids
    found = []
    for version in (201, 201, 202):  # the same policy each time
        engine.policy_changed(version)
        done = drain(engine, [request(n, ids, seed=1, max_tokens=16) for n in range(256)])
        whole = [tuple(ids) for ids in tokens(done).values() if len(ids) == 16]
        assert len(set(whole)) == len(whole) > 100
        found.append(set(whole))
        first = done[0]
        np.testing.assert_allclose(first.logprobs, plain_logprobs(policy, ids, first), atol=6 * limit(engine))
    assert all(not one & other for one, other in pairwise(found))
    done = drain(engine, [request(n, ids, seed=1, max_tokens=1) for n in range(4000)])
    counts = Counter(int(c.token_ids[0]) for c in done.values())
    with torch.no_grad():
        logits = policy(input_ids=torch.tensor([ids])).logits[0, -1].double()
    wanted = torch.softmax(logits / TEMPERATURE, -1).numpy()
    distance = sum(abs(counts[token] / 4000 - share) for token, share in enumerate(wanted)) / 2
    assert distance < 0.06  # 64 tokens and 4,000 draws: about 0.05 at most by chance


def test_seeded_requests_do_not_depend_on_that_noise(opened):
    engine, _ = opened
    found = []
    for version in (301, 302):
        engine.policy_changed(version)
        found.append(tokens(drain(engine, [request(n, PROMPTS[0].token_ids) for n in range(8)])))
    assert found[0] == found[1]
