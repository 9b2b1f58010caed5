"""Tiny random policies of every kind of causal language model that transformers has."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY, WINDOW = 40, 6
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "sliding_window": WINDOW,
    "use_sliding_window": True,
    "max_window_layers": 2,
    "attention_chunk_size": WINDOW,
    "attention_window_size": WINDOW,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "index_topk": 4,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
    "logits_scaling": 1.7,
    "logit_scale": 0.6,
    "embedding_multiplier": 1.3,
    "residual_multiplier": 0.8,
    "attention_multiplier": 0.4,
    "query_pre_attn_scalar": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "num_heads": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    # those of families with names of their own
    "d_model": 32,
    "d_ff": 48,
    "ffn_dim": 48,
    "n_embd": 32,
    "n_head": 4,
    "n_layer": 4,
    "n_layers": 4,
    "n_heads": 4,
    "n_inner": 48,
    "n_positions": 128,
    "rotary_dim": 4,
    "ffn_hidden_size": 48,
    "word_embed_proj_dim": 32,
    "num_layers": 4,
    "state_size": 8,
    "expand": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 4,
        "num_hidden_layers": 8,
        "num_kv_shared_layers": 2,
        "intermediate_size": [48] * 8,
        "activation_sparsity_pattern": [0.0] * 8,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": WINDOW},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "zamba2": {"layer_types": ["mamba", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
    "minimax_m3_vl_text": {"layer_types": ["minimax_m3_sparse"] * 4},
}


def tiny_config(model_type: str, **more: Any) -> PreTrainedConfig:
    """Its default configuration made small, with windows of a few tokens and no dropout."""
    config_class = CONFIG_MAPPING[model_type]
    known = set(vars(config_class())) | set(config_class.attribute_map)
    sizes = {k: v for k, v in SIZES.items() if k in known} | dropouts(config_class(), 0.0)
    if "kv_lora_rank" in known:
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    return config_class(**(sizes | SPECIAL.get(model_type, {}) | more))


def parameters(config: PreTrainedConfig) -> int:
    """Numbers in a model's weights; none is allocated."""
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


def dropouts(config: PreTrainedConfig, value: float) -> dict[str, float]:
    """Every key of a dropout, set to ``value``."""
    return {k: value for k, v in vars(config).items() if ("drop" in k or "jitter" in k) and isinstance(v, int | float)}


def tiny_model(config: PreTrainedConfig, seed: int = 0, scale: float = 3.0) -> PreTrainedModel:
    """Random weights, sharper than at initialisation, so that what is attended to shows in the log-probs."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim > 1:
                parameter.copy_(noise * scale / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(0.3 * noise)
    return model.eval()


def model_types() -> list[str]:
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
