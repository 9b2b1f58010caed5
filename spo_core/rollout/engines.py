"""Makes the engine that ``rollout.engine`` names."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from spo_core.config import MonteCarlo, Params, VllmEngineParams
from spo_core.errors import EngineError
from spo_core.policy.checkpoint import save_policy, stop_ids
from spo_core.rollout.engine import Engine
from spo_core.rollout.engine_check import checked_engine
from spo_core.rollout.prover import ProvingEngine, load_prover
from spo_core.rollout.seeds import derive_seed


def make_engine(
    params: Params, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, policy: Path, folder: Path
) -> Engine:
    """Make an engine that serves ``model`` after every ``policy_changed``.

    ``policy`` is a checkpoint with the model's architecture, and what a prover ``first`` is; ``folder`` is a place for
    logs and for weights on their way to servers. Raises EngineError where the engine does not start, ConfigError where
    it cannot decode such a policy.
    """
    rollout, stops = params.rollout, stop_ids(model, tokenizer)
    if not isinstance(rollout.engine, VllmEngineParams):
        make = partial(
            checked_engine,
            stop_ids=stops,
            context_length=rollout.longest_context,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            max_concurrency=rollout.max_concurrency,
            entropies=params.credit.partition.type == "entropy",
        )
        value = params.credit.value
        if not isinstance(value, MonteCarlo) or value.prover is None:
            return make(model)
        return ProvingEngine(make(model), make(load_prover(value.prover, policy, model, tokenizer)))
    from spo_core.rollout.vllm.engine import VllmEngine
    from spo_core.rollout.vllm.group import VllmGroup
    from spo_core.rollout.vllm.settings import vllm_settings
    from spo_core.rollout.vllm.weights import CheckpointWeights

    settings = vllm_settings(
        rollout.engine,
        policy,
        stops,
        context_length=rollout.longest_context,
        max_concurrency=rollout.max_concurrency,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        dtype=params.learn.dtype,
        noise=None if rollout.engine.seeded else derive_seed(params.run.seed, "engine", folder.name),
    )
    if rollout.engine.servers is None:
        if model.device.type == "cuda" and model.device.index:  # vLLM takes the process's current device
            raise EngineError(
                f"rollout.engine vllm takes the first GPU in the flow's process, and the policy is on {model.device}; "
                "set CUDA_VISIBLE_DEVICES to that GPU, or rollout.engine.servers"
            )
        return VllmEngine(settings, CheckpointWeights(model, policy))
    return VllmGroup(settings, rollout.engine, lambda target: save_policy(model, tokenizer, target), folder)
