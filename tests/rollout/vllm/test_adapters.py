"""vLLM serves a policy with adapters: merged into its weights, as they are after each update."""

from __future__ import annotations

import pytest
import torch

from spo_core.config import load_params
from spo_core.policy.adapter import adapter_off, trained_parameters
from spo_core.policy.checkpoint import save_policy, trained_policy
from spo_core.rollout.engines import make_engine
from spo_core.rollout.probe import probe
from spo_core.rollout.sampler import Prompt
from tests.conftest import ROOT
from tests.rollout.vllm.case import needs_vllm, sharp_policy

pytestmark = [*needs_vllm, pytest.mark.exhaustive]


@pytest.mark.parametrize(("servers", "targets"), [("null", "all-linear"), ("1", "[q_proj, v_proj]")])
def test_adapters_are_served_as_they_are_after_each_update(servers, targets, tokenizer, tmp_path):
    """The engine's log-probs are the trainer's at every version, and not those of the weights without adapters."""
    overrides = (
        f"policy.lora={{rank: 4, alpha: 16, targets: {targets}}}",
        f"rollout.engine={{type: vllm, servers: {servers}, cache_gib: 0.25}}",
    )
    params = load_params(ROOT, None, overrides)
    policy = tmp_path / "policy"
    save_policy(sharp_policy(params, tokenizer), tokenizer, policy)
    model, tokenizer = trained_policy(policy, params.policy.lora, seed=0, dtype="float32")
    prompts = [Prompt(str(n), tuple([3, 4, 5, 14, 6, 9, 8, 7][n:] * 5), None) for n in range(4)]
    engine = make_engine(params, model, tokenizer, policy=policy, folder=tmp_path / "engine")

    def gap() -> float:
        context, temperature = params.rollout.context_length, params.rollout.temperature
        return probe(engine, model, prompts, context_length=context, temperature=temperature, seed=0).largest

    try:
        generator = torch.Generator().manual_seed(0)
        for version in (1, 2):
            engine.policy_changed(version)
            assert gap() < 1e-3
            with adapter_off(model):
                assert (gap() > 0.05) == (version > 1), "fresh adapters change nothing, others do"
            engine.sleep()
            with torch.no_grad():  # as an update would
                for parameter in trained_parameters(model).values():
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    finally:
        engine.close()
