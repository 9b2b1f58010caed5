"""Settings of vLLM in the flow's process and as a server: engine arguments, environment, sampling of a request."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spo_core.config import VllmEngineParams
from spo_core.rollout.engine import Request

CPU_BLOCK = 32  # vLLM's cache blocks on CPUs are multiples of it
ENVIRONMENT = {
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the worker extension scales the log-probs of the other one
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # do not bind threads: the process has other work
}


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """``arguments`` are vLLM's own, by its names (``EngineArgs``); the rest is asked of every request."""

    arguments: dict[str, Any]
    stop_ids: tuple[int, ...]
    temperature: float
    top_p: float
    context_length: int
    noise: int | None = None
    """Seed of the engines' own generators; None: every request is sampled with its own seed."""

    @property
    def sleeps(self) -> bool:
        """Whether the engine is sent to sleep; on CPUs it frees nothing, but does as if."""
        return bool(self.arguments.get("enable_sleep_mode", True))

    def accepted(self, requests: Iterable[Request], version: int | None) -> list[Request]:
        """Check that requests fit the context, and return them. Raises RuntimeError where there is no policy to
        serve."""
        if version is None:
            raise RuntimeError("the engine has no policy to serve: policy_changed comes first")
        requests = list(requests)
        for request in requests:
            self.sampling(request)  # refuses before anything changes
        return requests

    def sampling(self, request: Request) -> dict[str, Any]:
        """Make a request's arguments of ``SamplingParams``. Raises ValueError where the context has no room for it."""
        request.check_room(self.context_length)
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": request.max_tokens,
            "seed": request.seed if self.noise is None else None,
            "logprobs": 0,  # log-probs of the sampled tokens alone
            "stop_token_ids": list(self.stop_ids),
            "ignore_eos": True,  # stop ids hold all that may stop
            "detokenize": False,
        }


def vllm_settings(
    engine: VllmEngineParams,
    policy: Path,
    stop_ids: tuple[int, ...],
    *,
    context_length: int,
    max_concurrency: int,
    temperature: float,
    top_p: float,
    dtype: str = "float32",
    noise: int | None = None,
) -> VllmSettings:
    """Make the settings for the policy in a folder.

    ``context_length``: most tokens of a request and its completion together; ``max_concurrency``: requests decoded at
    once; ``dtype``: of weights and cache unless ``engine.dtype`` says another; ``noise``: see VllmSettings;
    ``engine.options`` overrule all.
    """
    on_gpu = torch.cuda.is_available()
    arguments: dict[str, Any] = {
        "model": str(policy),
        "load_format": "safetensors",  # "auto" falls back to pickles
        "dtype": engine.dtype or dtype,  # vLLM's "auto" makes half precision of float32 checkpoints
        "seed": 0,  # of dummy runs; requests have their own, or the engine's generator is seeded with every policy
        "max_model_len": context_length,
        "max_num_seqs": max_concurrency,
        "enable_prefix_caching": True,
        "enforce_eager": engine.enforce_eager or not on_gpu,
        "logprobs_mode": "raw_logprobs",  # which the worker extension scales by the temperature
        "worker_extension_cls": "spo_core.rollout.vllm.policy_worker.PolicyWorker",
        "generation_config": "vllm",  # none of the checkpoint's sampling defaults
        "skip_tokenizer_init": True,
        "tensor_parallel_size": engine.tensor_parallel,
        "gpu_memory_utilization": engine.gpu_memory_utilization,
    }
    if on_gpu:
        arguments["enable_sleep_mode"] = engine.sleep
    else:
        # With per-request seeds vLLM fails on CPUs where a prompt is computed in parts.
        arguments |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(8192, context_length)}
        arguments["block_size"] = CPU_BLOCK
    if engine.block_size is not None:
        arguments["block_size"] = engine.block_size
    cache = engine.cache_gib if engine.cache_gib is not None or on_gpu else 1.0
    if cache is not None:
        arguments["kv_cache_memory_bytes"] = int(cache * 2**30)
    return VllmSettings(
        arguments=arguments | engine.options,
        stop_ids=stop_ids,
        temperature=temperature,
        top_p=top_p,
        context_length=context_length,
        noise=noise,
    )
