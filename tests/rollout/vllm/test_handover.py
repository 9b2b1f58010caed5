"""How an engine in the process takes new weights, without vLLM: the order of memory, weights, noise and cache."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace

import pytest
import torch

from spo_core.config import load_params
from spo_core.errors import EngineError
from spo_core.rollout.engines import make_engine
from spo_core.rollout.vllm import engine as vllm_engine
from spo_core.rollout.vllm.engine import VllmEngine
from spo_core.rollout.vllm.settings import VllmSettings
from tests.conftest import ROOT


class Recorder:
    """Stands for vLLM's engine and writes down what it is told."""

    def __init__(self, told: list) -> None:
        self.told = told

    def sleep(self, level: int) -> None:
        self.told.append(("sleep", level))

    def wake_up(self, tags: list[str]) -> None:
        self.told.append(("wake", *tags))

    def collective_rpc(self, method: str, args: tuple = (), kwargs: dict | None = None) -> None:
        taken = {name: list(v) if isinstance(v, Iterable) else v for name, v in (kwargs or {}).items()}
        self.told.append((method, *args, *taken.values()))

    def reset_prefix_cache(self) -> None:
        self.told.append(("forget",))


@pytest.fixture
def told(monkeypatch) -> list:
    told: list = []
    monkeypatch.setattr(vllm_engine, "_start", lambda settings: told.append(("start",)) or Recorder(told))
    monkeypatch.setattr(VllmEngine, "_stop", lambda self: None)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: told.append(("memory",)))
    return told


def engine(noise: int | None = None, weights=lambda: iter([("w", 1)])) -> VllmEngine:
    return VllmEngine(VllmSettings({}, (2,), 1.0, 1.0, 64, noise), weights)


def test_the_trainers_memory_is_given_back_before_the_engine_takes_its_own(told):
    opened = engine()
    opened.policy_changed(1)
    assert told == [("start",), ("load_policy", [("w", 1)]), ("forget",)]
    opened.sleep()
    del told[:]
    opened.policy_changed(2)
    assert told == [("memory",), ("wake", "weights"), ("load_policy", [("w", 1)]), ("wake", "kv_cache"), ("forget",)]


def test_a_process_without_a_gpu_has_no_memory_to_give_back(told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    vllm_engine.give_memory_back()
    assert told == []


def test_every_policy_begins_noise_of_its_own(told):
    """Of one run, of two engines of it, and of an engine that dies: no stream is ever begun twice."""
    for noise in (7, 8):
        opened = engine(noise)
        for version in (0, 0, 5):
            opened.policy_changed(version)
        opened._restart("it died")
    seeds = [call[1] for call in told if call[0] == "seed_sampling"]
    assert len(seeds) == len(set(seeds)) == 8
    again = engine(7)
    again.policy_changed(0)
    assert told[-2] == ("seed_sampling", seeds[0])  # from the run's seed alone
    assert told.index(("seed_sampling", seeds[0])) > told.index(("load_policy", [("w", 1)]))


def test_weights_that_do_not_fit_are_no_death_of_the_engine(told):
    def broken():
        yield "w", 1
        raise EngineError("of another policy")

    opened = engine(weights=broken)
    with pytest.raises(EngineError, match=r"^of another policy$"):
        opened.policy_changed(1)
    assert told == [("start",)] and opened.restarts == 0


def test_the_policy_is_on_the_engines_gpu(tmp_path):
    params = load_params(ROOT, None, ("rollout.engine={type: vllm}",))
    policy = SimpleNamespace(device=torch.device("cuda:1"), generation_config=None)
    with pytest.raises(EngineError, match=r"the policy is on cuda:1; set CUDA_VISIBLE_DEVICES"):
        make_engine(params, policy, SimpleNamespace(eos_token_id=2), policy=tmp_path, folder=tmp_path)
