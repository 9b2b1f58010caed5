"""What training is foretold to hold, against the bytes of all tensors that are alive in ranks that train."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor
from transformers import LlamaConfig, LlamaForCausalLM

from spo_core.config import Critic as CriticParams
from spo_core.config import LearnParams, LoraParams, PolicyShape, load_params
from spo_core.errors import ConfigError
from spo_core.estimate.memory import adapted, architecture, count_parameters, estimate_memory
from spo_core.learn.backend import TorchBackend
from spo_core.learn.critic import Critic, own_model
from spo_core.learn.tree_batch import TrainedSegments, layout
from spo_core.policy.adapter import add_adapter, trained_parameters
from spo_core.tree import FinishReason, Node, RolloutTree
from tests.conftest import ROOT
from tests.learn.test_critic import learnable

SHAPE = PolicyShape(layers=4, hidden_size=128, intermediate_size=256, heads=4, kv_heads=4, vocabulary=64)
RANKS = 2
CASES = {
    f"{dtype}, stage {stage}{', on the CPU' if offload else ''}": {
        "dtype": dtype,
        "backend": {"type": "deepspeed", "ranks": RANKS, "zero_stage": stage, "offload_optimizer": offload},
    }
    for dtype, stage, offload in (
        ("float32", 0, False),
        ("float32", 1, False),
        ("float32", 2, False),
        ("float32", 3, False),
        ("bfloat16", 0, False),
        ("bfloat16", 2, False),
        ("bfloat16", 3, False),
    )
}


def learn_params(options: dict) -> LearnParams:
    return LearnParams.model_validate({"learning_rate": 1e-3} | options)


def make_model() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=SHAPE.vocabulary,
            hidden_size=SHAPE.hidden_size,
            intermediate_size=SHAPE.intermediate_size,
            num_hidden_layers=SHAPE.layers,
            num_attention_heads=SHAPE.heads,
            num_key_value_heads=SHAPE.kv_heads,
        )
    )


def alive() -> int:
    """Bytes of the storages of all tensors but those made before ``gc.freeze``, without the fake ones that a compiler
    left: they have no storage."""
    gc.collect()
    found = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor) and not issubclass(type(o), FakeTensor)]
    found += [t.grad for t in found if t.is_leaf and t.grad is not None]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found if t.device.type == "cpu"}
    return sum(storages.values())


def held(params: LearnParams, make_backend) -> dict[str, float]:
    """Bytes a parameter of weights, gradients and optimizer, from two optimizer steps of two passes each."""
    gc.collect()
    gc.freeze()  # all that other tests hold: it stays, and is not looked through eight times
    before = alive()
    backend = make_backend(make_model(), None, params)
    count = count_parameters(SHAPE)
    nodes = (Node.prompt([3, 4, 5]), Node.sampled(0, [5, 6], [-1, -1], FinishReason.STOP, reward=1.0))
    segments = TrainedSegments(RolloutTree("q", nodes), (np.zeros(3, bool), np.ones(2, bool)))
    gradients = 0
    for _ in range(2):
        resting = alive()
        for last in (False, True):
            logprobs, _ = backend.logprobs(layout([segments]), 1.0)
            backend.backward(logprobs.sum(), last=last)
            del logprobs
            gradients = max(gradients, alive() - resting)
        backend.step(1e-3)
    gc.collect()
    return {"all": (alive() - before) / count, "gradients": gradients / count}


def rank(number: int, folder: str, options: dict) -> None:
    """Of ``RANKS``, in a process of its own; rank 0 writes what it found."""
    from spo_core.learn.deepspeed import backend as deepspeed_backend

    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "DS_ACCELERATOR": "cpu", "WORLD_SIZE": str(RANKS)}
    os.environ |= address | {"RANK": str(number), "LOCAL_RANK": str(number)}
    torch.set_num_threads(1)
    deepspeed_backend.join_ranks(Path(folder, "store"))
    original = deepspeed_backend.engine_settings

    def without_bucket(*args, **kwargs) -> dict:  # a communication buffer, larger than this policy
        settings = original(*args, **kwargs)
        return settings | {"zero_optimization": settings["zero_optimization"] | {"reduce_bucket_size": 1}}

    with patch.object(deepspeed_backend, "engine_settings", without_bucket):
        found = held(learn_params(options), deepspeed_backend.DeepSpeedBackend)
    if number == 0:
        Path(folder, "found.json").write_text(json.dumps(found))


def assert_foretold(options: dict, found: dict[str, float]) -> None:
    params = load_params(ROOT).model_copy(update={"learn": learn_params(options)})
    memory, count = estimate_memory(params, SHAPE), count_parameters(SHAPE)
    still = (memory.weights + memory.optimizer) / count
    kept = {1: 4.0 * (options["dtype"] == "bfloat16"), 3: 4 / RANKS}  # buffers of sums that stay from step to step
    buffer = kept.get(params.learn.zero_stage, 0.0)
    assert found["all"] == pytest.approx(still + buffer, rel=0.05)
    assert found["gradients"] + buffer == pytest.approx(memory.gradients / count, rel=0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_of_one_device(dtype):
    options = {"dtype": dtype, "backend": {"type": "torch"}}
    assert_foretold(options, held(learn_params(options), TorchBackend))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("network", "surprise"), [("copy", False), ("copy", True), ("head", False), ("head", True)])
def test_of_a_critic(network, surprise, dtype):
    """The bytes of its tensors after an update, and of gradients for what its optimizer holds."""
    value = CriticParams.model_validate({"type": "critic", "network": network, "surprise": surprise})
    params, model = load_params(ROOT), make_model()
    learn = learn_params({"dtype": dtype, "backend": {"type": "torch"}})
    critic = Critic(own_model(model, value), TorchBackend(model, None, learn), value, learn, probabilities=True, seed=0)
    critic.update(learnable(1), 1)
    tensors = [t for state in critic.optimizer.state.values() for t in state.values() if t.ndim]
    if critic.own is not None:
        tensors += [*critic.own.model.parameters(), *(p for pair in critic.masters.pairs for p in pair)]
    tensors += critic.trained.parameters()
    bytes_of = {t.data_ptr(): t.nbytes for t in tensors}
    gradients = sum(p.nbytes for p in critic.trained.parameters())
    chosen = {"learn": learn, "credit": params.credit.model_copy(update={"value": value})}
    memory = estimate_memory(params.model_copy(update=chosen), SHAPE)
    assert memory.critic == pytest.approx(sum(bytes_of.values()) + gradients, rel=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs the extra lora")
@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_of_adapters(dtype, targets):
    """The count of trained numbers, and the bytes of all tensors, of frozen weights and adapters together."""
    lora = LoraParams(rank=64, alpha=1, targets=targets)
    options, trained = {"dtype": dtype, "backend": {"type": "torch"}}, []

    def adapted(model, reference, params) -> TorchBackend:
        add_adapter(model, lora, seed=0, dtype=dtype)
        trained.append(sum(p.numel() for p in trained_parameters(model).values()))
        return TorchBackend(model, reference, params)

    found, params = held(learn_params(options), adapted), load_params(ROOT)
    chosen = {"learn": learn_params(options), "policy": params.policy.model_copy(update={"lora": lora})}
    memory, count = estimate_memory(params.model_copy(update=chosen), SHAPE), count_parameters(SHAPE)
    assert trained == [memory.trained] and memory.parameters == count
    assert found["all"] == pytest.approx((memory.weights + memory.optimizer) / count, rel=0.05)
    assert found["gradients"] == pytest.approx(memory.gradients / count, rel=0.05)


def test_adapters_fit_a_card_of_24_gb():
    """In the update, and while vLLM samples beside weights and optimizer state; whole weights would leave nothing."""
    card = 24e9

    def most(*overrides: str) -> float:
        params = load_params(ROOT, "lora-24gb", overrides)
        shape = architecture(params)
        memory = estimate_memory(params, shape)
        assert params.rollout.engine.sleep and memory.reference == 0
        sampling = memory.weights + memory.optimizer + params.rollout.engine.gpu_memory_utilization * card
        return max(memory.device, sampling) / card

    assert most() < 0.8 and most("learn.kl={type: penalty}") == most()
    assert most("policy.lora=null") > 0.95
    with pytest.raises(
        ConfigError, match=r"policy\.lora\.targets: c_attn is no linear layer; there are: q_proj, k_proj"
    ):
        most("policy.lora.targets=[q_proj, c_attn]")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra deepspeed")
@pytest.mark.exhaustive
@pytest.mark.parametrize("case", CASES)
def test_of_ranks(case, tmp_path):
    torch.multiprocessing.spawn(partial(rank, folder=str(tmp_path), options=CASES[case]), nprocs=RANKS)
    assert_foretold(CASES[case], json.loads((tmp_path / "found.json").read_text()))


def test_a_layer_that_is_named_twice_or_by_its_path_has_one_adapter():
    shape = load_params(ROOT, "rho1b-grpo").policy.init.shape
    found = {
        str(targets): adapted(shape, LoraParams(rank=4, targets=targets))
        for targets in (("q_proj",), ("q_proj", "q_proj"), ("self_attn.q_proj",))
    }
    assert len({str(layers) for layers in found.values()}) == 1
