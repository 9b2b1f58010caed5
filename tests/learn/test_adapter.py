"""Training through low-rank adapters against the weights that they compose: values, gradients, steps, files."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from spo_core.config import LearnParams, LoraParams, with_fidelity
from spo_core.errors import ConfigError, DataError
from spo_core.learn.backend import TorchBackend
from spo_core.learn.objective import counted_masks
from spo_core.learn.precision import working_copy
from spo_core.learn.trainer import Trainer
from spo_core.learn.tree_batch import TrainedSegments, layout
from spo_core.policy.adapter import MergedState, add_adapter, has_adapter, load_adapter, trained_parameters
from spo_core.policy.checkpoint import load_policy, read_weights, save_policy, trained_policy, write_weights
from spo_core.rollout.vllm.weights import CheckpointWeights
from tests.learn.test_trainer import DEFAULTS, PENALTY, sample
from tests.rollout.vllm.test_weights import small_model

pytestmark = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs the extra lora")
FULL = 48  # the widest layer of the policy of tests/conftest.py: no adapter of that rank is low


def adapted(policy, *, randomly: bool = True, dtype: str = "float32", **options):
    """A copy with adapters whose B is not 0."""
    model = copy.deepcopy(policy)
    add_adapter(model, LoraParams.model_validate({"rank": 3, "alpha": 6} | options), seed=1, dtype=dtype)
    if randomly:
        shake(model)
    return model


def shake(model, seed: int = 0, scale: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def merged(policy, model):
    """The plain policy with the weights that an adapted one composes."""
    plain = copy.deepcopy(policy)
    plain.load_state_dict(dict(MergedState(model)))
    return plain


def trainer_of(model, **options) -> Trainer:
    params = LearnParams.model_validate(with_fidelity(DEFAULTS | options))
    return Trainer(TorchBackend(model, None, params), params, temperature=1.0, seed=0)


def gradient(model) -> dict[str, torch.Tensor]:
    """Of the summed loss of a few trees, by the trees' packed forward pass."""
    trainer = trainer_of(model)
    assert trainer.add_gradient(sample()) > 0
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, trainer.backend.take_gradient(), strict=True))


def largest(tensors) -> float:
    return max(float(t.detach().abs().max()) for t in tensors)


@pytest.mark.parametrize("rank", [1, 3, FULL])
@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj")])
def test_the_gradient_is_that_of_the_composed_weight(policy, rank, targets):
    """W = W0 + s B A, so dL/dB = s G A^T and dL/dA = s B^T G, with the gradient G of a plain policy at W; frozen
    weights have none."""
    model = adapted(policy, rank=rank, alpha=2 * rank, targets=targets)
    composed, found = gradient(merged(policy, model)), gradient(model)
    layers = [name.removesuffix(".lora_A.default.weight") for name in found if name.endswith("lora_A.default.weight")]
    assert len(layers) == (14 if isinstance(targets, str) else 4)
    parameters = dict(model.named_parameters())
    for layer in layers:
        whole = composed[f"{layer}.weight"]
        a, b = (f"{layer}.lora_{side}.default.weight" for side in "AB")
        for ours, expected in ((b, 2 * whole @ parameters[a].T), (a, 2 * parameters[b].T @ whole)):
            assert largest([found[ours] - expected]) <= 1e-4 * largest([expected]), ours
    frozen = [g for name, g in found.items() if ".lora_" not in name]
    assert largest(frozen) == 0 < largest(composed.values())


def test_a_step_of_full_rank_is_a_step_of_the_weights(policy):
    """With A the identity and B = 0, Adam's first step changes B as a plain policy's changes W, and A not at all."""
    model, plain = adapted(policy, randomly=False, rank=FULL, alpha=FULL), copy.deepcopy(policy).requires_grad_(False)
    with torch.no_grad():
        for name, parameter in trained_parameters(model).items():
            if ".lora_A." in name:
                parameter.copy_(torch.eye(*parameter.shape))
                plain.get_parameter(name.replace("lora_A.default.", "")).requires_grad_(True)
    before = {name: p.clone() for name, p in trained_parameters(model).items() if ".lora_A." in name}
    for learner in (model, plain):
        trainer_of(learner, learning_rate=1e-3).train_iteration(sample(), iteration=1)
    moved = [plain.state_dict()[name] - policy.state_dict()[name] for name in plain.state_dict()]
    apart = [plain.state_dict()[name] - tensor for name, tensor in MergedState(model).items()]
    assert largest(moved) > 5e-4 and largest(apart) < 2e-6
    assert all(torch.equal(dict(model.named_parameters())[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_adapters_it_is_the_reference_policy(policy, dtype):
    """A KL penalty loads no second policy; what it compares with are the bits of the first one, gradients are left as
    they were."""
    options = {"kl": PENALTY, "dtype": dtype}
    model, params = adapted(policy, dtype=dtype), LearnParams.model_validate(with_fidelity(DEFAULTS | options))
    ours, theirs = TorchBackend(model, None, params), TorchBackend(policy, copy.deepcopy(policy), params)
    items = [TrainedSegments(t, counted_masks(c, params)) for t, c in sample()]
    batch = layout(items, torch.device("cpu"))
    assert torch.equal(ours.reference_logprobs(batch, 1.0), theirs.reference_logprobs(batch, 1.0))
    with_adapters = ours.logprobs(batch, 1.0)[0]
    assert not torch.equal(with_adapters, ours.reference_logprobs(batch, 1.0)) and with_adapters.requires_grad
    row = trainer_of(model, **options).train_iteration(sample(), iteration=1)
    assert row["kl"] > 0
    with pytest.raises(ValueError, match="need a reference policy"):
        TorchBackend(policy, None, params).reference_logprobs(batch, 1.0)


def test_rounded_weights_are_held_once_and_adapters_keep_their_digits(policy):
    model = adapted(policy, dtype="bfloat16")
    params = LearnParams.model_validate(with_fidelity(DEFAULTS | {"dtype": "bfloat16"}))
    working = working_copy(model, params)
    theirs = dict(working.named_parameters())
    for name, parameter in model.named_parameters():
        shared = parameter.data_ptr() == theirs[name].data_ptr()
        assert theirs[name].dtype == torch.bfloat16 and shared == (".lora_" not in name)
        assert parameter.dtype == (torch.float32 if ".lora_" in name else torch.bfloat16)
    trainer = Trainer(TorchBackend(model, None, params, working), params, temperature=1.0, seed=0)
    before = {name: p.clone() for name, p in trained_parameters(model).items()}
    trainer.train_iteration(sample(), iteration=1)
    for name, parameter in trained_parameters(model).items():
        assert not torch.equal(parameter, before[name]) and torch.equal(theirs[name], parameter.bfloat16())
        assert not torch.equal(parameter, parameter.bfloat16().float()), "digits are lost"


def test_files_hold_the_merged_policy_and_the_adapter(policy, tokenizer, tmp_path):
    """Any loader reads the policy; peft reads the adapter beside the first policy; a second process takes over both."""
    from peft import PeftModel

    model, ids = adapted(policy), torch.arange(3, 20)[None]
    save_policy(policy, tokenizer, tmp_path / "first")
    save_policy(model, tokenizer, tmp_path / "trained")
    expected = model(input_ids=ids).logits
    plain, _ = load_policy(tmp_path / "trained")
    by_peft = PeftModel.from_pretrained(load_policy(tmp_path / "first")[0], tmp_path / "trained" / "adapter")
    for other in (plain, by_peft):
        assert largest([other(input_ids=ids).logits - expected]) < 1e-4
    saved = load_file(tmp_path / "trained" / "model.safetensors")
    assert {n: t.shape for n, t in saved.items()} == {n: t.shape for n, t in policy.state_dict().items()}
    lora = LoraParams(rank=3, alpha=6)
    again = trained_policy(tmp_path / "first", lora, seed=1, dtype="float32")[0]
    assert not torch.equal(again(input_ids=ids).logits, expected)
    load_adapter(again, tmp_path / "trained" / "adapter")
    assert torch.equal(again(input_ids=ids).logits, expected)
    shake(model)
    write_weights(tmp_path / "handed", model)
    assert all(".lora_" in name for name in load_file(tmp_path / "handed"))
    read_weights(tmp_path / "handed", again)
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    with pytest.raises(DataError, match=r"of other policy\.lora"):
        load_adapter(adapted(policy, rank=4), tmp_path / "trained" / "adapter")
    with pytest.raises(DataError, match="cannot be read as an adapter"):
        load_adapter(again, tmp_path / "first")


def test_a_seed_gives_the_same_adapters_and_the_first_policy(policy):
    models = [adapted(policy, randomly=False) for _ in range(2)]
    torch.manual_seed(99)
    models.append(adapted(policy, randomly=False))
    ids = torch.arange(3, 20)[None]
    for model in models:
        assert torch.equal(model(input_ids=ids).logits, policy(input_ids=ids).logits)
        assert all(map(torch.equal, trained_parameters(models[0]).values(), trained_parameters(model).values()))
    assert has_adapter(models[0]) and not has_adapter(policy)


KINDS = ("llama", "qwen2", "gemma2", "gpt2", "mixtral", "phi3", "gpt_oss")


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_engine_is_given_is_what_is_saved(kind, tokenizer, tmp_path):
    """Of tied weights, fused experts and transposed layers too: the names and shapes of the first policy, the merged
    numbers, and the same logits from the files."""
    check_architecture(kind, tokenizer, tmp_path)


def check_architecture(kind, tokenizer, folder) -> None:
    first = small_model(kind)
    save_policy(first, tokenizer, folder / "first")
    first = AutoModelForCausalLM.from_pretrained(folder / "first", dtype=torch.float32).eval()
    model = adapted(first)
    shake(model, scale=0.5)
    save_policy(model, tokenizer, folder / "trained")
    saved = {n: t for path in (folder / "trained").glob("*.safetensors") for n, t in load_file(path).items()}
    handed = dict(CheckpointWeights(model, folder / "first")())
    assert {n: t.shape for n, t in saved.items()} == {n: t.shape for n, t in handed.items()}
    assert all(torch.equal(saved[name], handed[name]) for name in saved)
    ids = torch.arange(3, 20)[None]
    plain = AutoModelForCausalLM.from_pretrained(folder / "trained", dtype=torch.float32).eval()
    found, expected = plain(input_ids=ids).logits, model(input_ids=ids).logits
    changed = largest([expected - first(input_ids=ids).logits])
    assert changed > 0 and largest([found - expected]) < 1e-3 * changed


def test_experts_that_peft_would_take_for_others_are_refused(tmp_path, tokenizer):
    with pytest.raises(
        ConfigError, match=r"policy\.lora\.targets: peft takes these for the fused experts of a deepseek"
    ):
        adapted(small_model("deepseek_v3"))
    assert trained_parameters(adapted(small_model("deepseek_v3"), targets=("o_proj", "kv_b_proj")))


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens", "norm", "nonesuch", "proj", "self_attn"])
def test_targets_that_cannot_have_an_adapter_are_refused(policy, name):
    with pytest.raises(
        ConfigError, match=rf"policy\.lora\.targets: {name} is no linear layer.*there are: down_proj, g"
    ):
        adapted(policy, targets=("q_proj", name))
    with pytest.raises(ValueError, match="name a linear layer"):
        LoraParams(targets=())


def test_without_the_extra_it_says_so(policy, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[lora\]'"):
        adapted(policy)
