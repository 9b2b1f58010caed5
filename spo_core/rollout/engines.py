"""Makes the engine that ``rollout.engine`` names."""

from __future__ import annotations

from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from spo_core.config import MonteCarlo, Params, VllmEngineParams
from spo_core.errors import EngineError
from spo_core.policy.checkpoint import save_policy, stop_ids
from spo_core.rollout.engine import Engine
from spo_core.rollout.engine_check import checked_engine
from spo_core.rollout.prover import ProvingEngine, fitting_prover, load_prover
from spo_core.rollout.seeds import derive_seed
from spo_core.system.files import publish


def make_engine(
    params: Params, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, policy: Path, folder: Path
) -> Engine:
    """Make an engine that serves ``model`` after every ``policy_changed``.

    ``policy`` is a checkpoint with the model's architecture, and what a prover ``first`` is; ``folder`` is a place for
    logs and for weights on their way to servers. Raises EngineError where the engine does not start, ConfigError where
    it cannot decode such a policy, or a prover has other tokens.
    """
    rollout, stops, value, prover = params.rollout, stop_ids(model, tokenizer), params.credit.value, None
    if isinstance(value, MonteCarlo) and value.prover is not None:
        prover = fitting_prover(value.prover, policy, model, tokenizer)
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
        if prover is None:
            return make(model)
        with ExitStack() as opened:  # closes the first where the second cannot be made
            first = opened.enter_context(closing(make(model)))
            both = ProvingEngine(first, opened.enter_context(closing(make(load_prover(prover, model)))))
            opened.pop_all()
        return both
    from spo_core.rollout.vllm.engine import VllmEngine
    from spo_core.rollout.vllm.group import VllmGroup
    from spo_core.rollout.vllm.settings import VllmSettings, vllm_settings
    from spo_core.rollout.vllm.weights import CheckpointWeights

    def settings(engine: VllmEngineParams, served: Path, place: Path) -> VllmSettings:
        return vllm_settings(
            engine,
            served,
            stops,
            context_length=rollout.longest_context,
            max_concurrency=rollout.max_concurrency,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            dtype=params.learn.dtype,
            noise=None if engine.seeded else derive_seed(params.run.seed, "engine", place.name),
        )

    if rollout.engine.servers is None:
        if model.device.type == "cuda" and model.device.index:  # vLLM takes the process's current device
            raise EngineError(
                f"rollout.engine vllm takes the first GPU in the flow's process, and the policy is on {model.device}; "
                "set CUDA_VISIBLE_DEVICES to that GPU, or rollout.engine.servers"
            )
        return VllmEngine(settings(rollout.engine, policy, folder), CheckpointWeights(model, policy))
    proving = None
    with ExitStack() as opened:
        if prover is not None:  # as many servers, on the GPUs behind the policy's
            behind = rollout.engine.first_gpu + rollout.engine.servers * rollout.engine.tensor_parallel
            engine, place = rollout.engine.model_copy(update={"first_gpu": behind}), folder / "prover"
            proving = VllmGroup(settings(engine, prover, place), engine, partial(publish, prover), place)
            opened.callback(proving.close)
        chosen = settings(rollout.engine, policy, folder)
        group = VllmGroup(chosen, rollout.engine, lambda target: save_policy(model, tokenizer, target), folder)
        opened.callback(group.close)
        served = group if proving is None else ProvingEngine(group, proving)
        opened.pop_all()
    return served
