"""Estimates, in bytes, of the memory that training and sampling a policy take, from its architecture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spo_core.config import CHUNK_LOGITS, LoraParams, Params, PolicyShape
from spo_core.errors import ConfigError
from spo_core.problems import problem_set
from spo_core.system.files import read_json
from spo_core.system.plugins import project

SPECIAL_TOKENS = 3  # padding, begin and end, of the tokenizers that policies from scratch have
SURPRISE = 4_673  # trained numbers of learn/surprise.py's head
LLAMA_LIKE = ("llama", "mistral", "qwen2")  # model types whose parameters ``count_parameters`` counts


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of one rank, without fragmentation, workspace of kernels and communication buffers. DeepSpeed has one of
    5e8 numbers at stage 3, and at stage 1 with offload or in float32."""

    parameters: int
    """Number of parameters, not bytes; without adapters."""
    trained: int
    """Number of parameters that are trained: all, or those of adapters."""
    weights: int
    gradients: int
    """Gradients in the last backward pass of a step, with those summed before it."""
    optimizer: int
    """AdamW's two float32 moments, and its own float32 weights where the model's are bfloat16 or DeepSpeed shards."""
    optimizer_on_cpu: bool
    reference: int
    """Weights of the reference policy; 0 without a KL penalty, and with adapters, without which it is the policy."""
    critic: int
    """A critic's weights, gradients and optimizer, whole on every rank; 0 without one."""
    prover: int
    """A prover's weights, and keys and values of as many requests as the policy's; 0 without one, and with vLLM, where
    it has GPUs of its own."""
    activations: int
    """Kept for the backward pass of ``learn.max_tokens_per_forward`` tokens, or of the longest path if it is longer."""
    logits: int
    """Logits of one chunk of positions, float32, and their gradient."""
    engine_cache: int
    """Keys and values of ``rollout.max_concurrency`` requests at the longest context; 0 with vLLM, which takes
    ``rollout.engine.gpu_memory_utilization`` of a device for weights and cache of its own."""

    @property
    def device(self) -> int:
        """Sum of what lies on the device."""
        held = self.weights + self.gradients + self.reference + self.critic + self.prover + self.activations
        held += self.logits + self.engine_cache
        return held + (0 if self.optimizer_on_cpu else self.optimizer)


def architecture(params: Params) -> PolicyShape | None:
    """The policy's shape, from params, its folder's config.json or ``policy.init.shape``; None where unknown. Raises
    DataError for a config.json that is not JSON."""
    init = params.policy.init
    if init.type == "pretrained":
        config = Path(init.path) / "config.json"
        return (_from_config(read_json(config)) or init.shape) if config.is_file() else init.shape
    vocabulary = 256
    if init.tokenizer == "characters":
        try:
            alphabet = problem_set(params.data).alphabet()
        except ConfigError:  # no such problem set yet
            return None
        if alphabet is None:
            return None
        vocabulary = len(alphabet)
    return PolicyShape(
        layers=init.layers,
        hidden_size=init.hidden_size,
        intermediate_size=init.intermediate_size,
        heads=init.heads,
        kv_heads=init.heads,
        vocabulary=vocabulary + SPECIAL_TOKENS,
    )


def _from_config(config: dict) -> PolicyShape | None:
    """Shape of a Hugging Face configuration; None for an architecture whose parameters are laid out otherwise."""
    try:
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        if config["model_type"] not in LLAMA_LIKE or (config.get("head_dim") or hidden // heads) * heads != hidden:
            return None
        return PolicyShape(
            layers=config["num_hidden_layers"],
            hidden_size=hidden,
            intermediate_size=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            vocabulary=config["vocab_size"],
            tied=config.get("tie_word_embeddings", False),
            attention_bias=config["model_type"] == "qwen2",
        )
    except KeyError:
        return None


def count_parameters(shape: PolicyShape) -> int:
    """Number of parameters of a Llama (or Qwen2, with ``attention_bias``) of this shape."""
    hidden, keys = shape.hidden_size, shape.kv_heads * (shape.hidden_size // shape.heads)
    attention = 2 * hidden * hidden + 2 * hidden * keys + shape.attention_bias * (hidden + 2 * keys)
    layer = attention + 3 * hidden * shape.intermediate_size + 2 * hidden
    embeddings = shape.vocabulary * hidden * (1 if shape.tied else 2)
    return embeddings + shape.layers * layer + hidden


def linear_layers(shape: PolicyShape) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the linear layers inside one layer, by name."""
    hidden, keys, inner = (
        shape.hidden_size,
        shape.kv_heads * (shape.hidden_size // shape.heads),
        shape.intermediate_size,
    )
    attention = {"q_proj": (hidden, hidden), "k_proj": (hidden, keys), "v_proj": (hidden, keys)}
    mlp = {"gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden)}
    return attention | {"o_proj": (hidden, hidden)} | mlp


def adapted(shape: PolicyShape, lora: LoraParams) -> list[tuple[int, int]]:
    """Inputs and outputs of the linear layers of one layer that get an adapter. Raises ConfigError for a name that a
    policy of this shape does not have."""
    layers = linear_layers(shape)
    given = layers if isinstance(lora.targets, str) else (name.rpartition(".")[2] for name in lora.targets)
    names = list(dict.fromkeys(given))  # a path's end names the layers, and once is enough
    for name in names:
        if name not in layers:
            raise ConfigError(f"policy.lora.targets: {name} is no linear layer; there are: {', '.join(layers)}")
    return [layers[name] for name in names]


def estimate_memory(params: Params, shape: PolicyShape) -> Memory:
    """Memory of one rank that trains and samples a policy of this shape.

    With T tokens in a forward pass, h hidden, k = kv_heads x head size, i intermediate and b bytes of a number, a
    layer keeps about T b (8 h + 2 k + 4 i): inputs and outputs of both norms, queries, attention's output and both
    residuals (8 h), keys and values (2 k), gate, up, its activation and their product (4 i). Attention is assumed to
    keep no T x T matrix. With ``gradient_checkpointing`` T b h of every layer is kept, and all of one layer. ZeRO
    divides optimizer state from stage 1 on, gradients from 2 and weights from 3. Gradients are summed in float32. At
    stage 1 in bfloat16 (which stage 0 becomes there), every rank has the gradients of a pass beside their sums, both
    whole; with the optimizer on the CPU it has the sums alone. From stage 2 on such an optimizer takes gradients over
    one by one; they are counted all the same. With ``policy.lora`` gradients and optimizer state are those of
    rank x (inputs + outputs) numbers for each adapter, and rank more numbers a token are kept at each.
    """
    learn = params.learn
    backend = learn.backend
    size = 2 if learn.dtype == "bfloat16" else 4
    stage = learn.zero_stage
    ranks, offload = (backend.ranks, backend.offload_optimizer) if backend.type == "deepspeed" else (1, False)
    count = trained = count_parameters(shape)
    lora, beside = params.policy.lora, 0  # numbers beside the policy's own, of a layer and a token
    if lora is not None:
        pairs = adapted(shape, lora)
        trained = shape.layers * sum(lora.rank * (ins + outs) for ins, outs in pairs)
        beside = lora.rank * len(pairs)
    tokens = max(learn.max_tokens_per_forward, params.rollout.longest_context)
    keys = shape.kv_heads * (shape.hidden_size // shape.heads)
    layer = tokens * size * (8 * shape.hidden_size + 2 * keys + 4 * shape.intermediate_size + beside)
    kept = tokens * size * shape.hidden_size * shape.layers + layer
    per_token = shape.layers * 2 * keys * size
    cached = params.rollout.max_concurrency * params.rollout.longest_context  # tokens, at most
    return Memory(
        parameters=count,
        trained=trained,
        weights=(count + (trained if lora else 0)) * size // (ranks if stage >= 3 else 1),
        gradients=trained * (6 if stage == 1 and size == 2 and not offload else 4) // (ranks if stage >= 2 else 1),
        optimizer=trained * (12 if size == 2 or stage else 8) // (ranks if stage else 1),
        optimizer_on_cpu=offload,
        reference=count * size if learn.needs_reference and lora is None else 0,
        critic=_critic(params, shape, size),
        prover=_prover(params, shape, size if backend.type == "torch" or lora else 4, cached),
        activations=kept if learn.gradient_checkpointing else shape.layers * layer,
        logits=2 * 4 * min(tokens * shape.vocabulary, CHUNK_LOGITS),
        engine_cache=cached * per_token if params.rollout.engine.type == "transformers" else 0,
    )


def _critic(params: Params, shape: PolicyShape, size: int) -> int:
    """Bytes of a critic: 4 of weights, 4 of gradient and 8 of moments for each trained number. A copy of the policy has
    an output layer too, which is not trained, and where it computes in bfloat16 its weights once more, rounded."""
    value, hidden = params.credit.value, shape.hidden_size
    if value.type != "critic":
        return 0
    more = SURPRISE if value.surprise else 0
    if value.network == "head":
        return 16 * (hidden * hidden + 4 * hidden + 1 + more)  # LayerNorm and two linear layers
    count, output = count_parameters(shape), 0 if shape.tied else shape.vocabulary * hidden
    return 16 * (count - output + hidden + 1 + more) + 4 * output + (2 * count if size == 2 else 0)


def _prover(params: Params, shape: PolicyShape, size: int, cached: int) -> int:
    """Bytes of a prover of ``size`` bytes a number, with ``cached`` tokens in its engine's cache.

    Where its shape is not known, it is taken to be the policy's."""
    value = params.credit.value
    if value.type != "monte_carlo" or value.prover is None or params.rollout.engine.type != "transformers":
        return 0
    config = Path(project(), value.prover, "config.json")
    if value.prover != "first" and config.is_file():
        shape = _from_config(read_json(config)) or shape
    keys = shape.kv_heads * (shape.hidden_size // shape.heads)
    return size * (count_parameters(shape) + cached * shape.layers * 2 * keys)
