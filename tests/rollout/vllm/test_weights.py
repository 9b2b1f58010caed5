"""Weights for an engine in the process are what ``save_pretrained`` writes, in every architecture we can make."""

from __future__ import annotations

import gc

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from spo_core.errors import EngineError
from spo_core.rollout.vllm import weights as vllm_weights
from spo_core.rollout.vllm.weights import CheckpointWeights

SMALL = {
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "shared_expert_intermediate_size"), 48),
    **dict.fromkeys(("moe_intermediate_size", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layers", "n_layer", "num_experts_per_tok"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    "num_key_value_heads": 2,
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "n_shared_experts", "moe_layer_start_index"), 1),
}
LARGEST = 6_000_000  # parameters of what counts as small
RENAMED = ("qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss", "ernie4_5_moe", "granitemoe", "minimax_m2", "jamba")


def small_config(kind: str):
    """Of a model of this type, cut down as far as its configuration lets us."""
    config = CONFIG_MAPPING[kind]()
    text = config.get_text_config()
    for name, value in SMALL.items():
        if hasattr(text, name):
            setattr(text, name, value)
    for name in ("layer_types", "mlp_layer_types"):
        if isinstance(getattr(type(text), name, None), property) or not getattr(text, name, None):
            continue
        setattr(text, name, getattr(text, name)[-2:])
    config.validate()
    return config


def small_model(kind: str) -> PreTrainedModel:
    """With random weights, and the same for all of its tied ones."""
    config = small_config(kind)
    with torch.device("meta"):
        size = AutoModelForCausalLM.from_config(config).num_parameters()
    if size > LARGEST:
        raise ValueError(f"{kind} has {size} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.02)
    return model


def assert_as_saved(model: PreTrainedModel, folder) -> None:
    """Handed over is what is saved: now, and after the weights have changed."""
    model.save_pretrained(folder)
    weights = CheckpointWeights(model, folder)
    for change in (False, True):
        if change:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(-1.5)
            model.save_pretrained(folder)
        handed, names = {}, []
        for name, tensor in weights():
            names.append(name)
            handed[name] = tensor
        saved = {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}
        assert len(names) == len(set(names)) and set(names) == set(saved)
        for name, tensor in saved.items():
            assert handed[name].dtype == tensor.dtype and torch.equal(handed[name], tensor), name


@pytest.mark.parametrize("kind", RENAMED)
def test_what_is_handed_over_is_what_is_saved(kind, tmp_path):
    model = small_model(kind)
    assert_as_saved(model, tmp_path / "new")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "new")  # whose conversions are those of its checkpoint
    assert_as_saved(loaded, tmp_path / "again")


@pytest.mark.slow
def test_every_architecture_that_can_be_made_small(tmp_path):
    tried = 0
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            model = small_model(kind)
        except Exception:  # its configuration wants more than smaller numbers, or a package that is not here
            continue
        try:
            assert_as_saved(model, tmp_path / kind)
        except Exception as error:
            raise AssertionError(f"{kind} is handed over otherwise than it is saved") from error
        tried += 1
    assert tried > 120


def alive() -> dict[int, int]:
    """Bytes of every storage that a tensor of this process holds, by address."""
    tensors = [item for item in gc.get_objects() if type(item) in (torch.Tensor, torch.nn.Parameter)]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.device.type == "cpu"}


def test_no_more_than_a_layer_is_ever_copied(tmp_path):
    model = small_model("mixtral")
    model.save_pretrained(tmp_path)
    weights = CheckpointWeights(model, tmp_path)
    before = alive()
    copied = [
        sum(size for address, size in alive().items() if address not in before)
        for number, _ in enumerate(weights())
        if number % 6 == 0
    ]
    layer = sum(tensor.nbytes for name, tensor in model.state_dict().items() if ".layers.0." in name)
    assert len(copied) > 5 and 0 < max(copied) <= layer


def test_tensors_stay_where_and_what_they_are(tmp_path):
    model = small_model("qwen3_moe").bfloat16()
    model.save_pretrained(tmp_path)
    handed = list(CheckpointWeights(model.to("meta"), tmp_path)())  # as they would stay on a GPU
    assert len(handed) == 45
    assert {(tensor.device.type, tensor.dtype) for _, tensor in handed} == {("meta", torch.bfloat16)}


def drop(tensors):
    del tensors["model.layers.1.mlp.experts.3.up_proj.weight"]


def rename(tensors):
    tensors["model.layers.1.mlp.experts.4.up_proj.weight"] = tensors.pop("model.layers.1.mlp.experts.3.up_proj.weight")


def reshape(tensors):
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()


@pytest.mark.parametrize(("change", "count"), [(drop, 1), (rename, 2), (reshape, 1)])
def test_an_engine_that_began_with_other_tensors_is_refused(change, count, tmp_path):
    model = small_model("qwen3_moe")
    model.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(EngineError, match=f"no checkpoint of this Qwen3MoeForCausalLM: {count} tensors? .*first model"):
        CheckpointWeights(model, tmp_path)


def test_tensors_that_belong_together_are_not_torn_apart(tmp_path, monkeypatch):
    """Of a model whose checkpoint has in one tensor what the module has in several."""
    model = small_model("hrm_text")
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(vllm_weights, "_layer", lambda name: name)
    with pytest.raises(EngineError, match="HrmTextForCausalLM cannot be handed over a layer at a time"):
        CheckpointWeights(model, tmp_path)


def test_a_conversion_that_cannot_be_undone_is_refused(tmp_path, monkeypatch):
    def failing(*_):
        raise ValueError("Cannot reverse the transform with TP or quantization")

    model = small_model("qwen3_moe")
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(vllm_weights, "revert_weight_conversion", failing)
    with pytest.raises(EngineError, match="names of its checkpoint: Cannot reverse the transform"):
        CheckpointWeights(model, tmp_path)
