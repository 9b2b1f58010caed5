"""``run.device``: what it names, what is refused, and where a process keeps its copy of the policy."""

from __future__ import annotations

import re

import pytest
import torch

from spo_core.config import load_params
from spo_core.errors import ConfigError
from spo_core.paths import Paths
from spo_core.policy.device import find_device, peak_bytes
from spo_core.train.identity import check_training, policy_device, training_device
from spo_core.train.warmup import check_warmup
from tests.conftest import ROOT

DEEPSPEED = "learn.backend={type: deepspeed}"
VLLM = "rollout.engine={type: vllm}"
DASK = "run.task_runner={type: dask}"


def with_gpus(monkeypatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("chosen", "gpus", "found"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda:0"),
        ("cuda:0", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
        ("cuda:12", 16, "cuda:12"),
        ("cuda", 0, "sees no GPU here"),
        ("cuda:0", 0, "sees no GPU here"),
        ("cuda:3", 1, "sees cuda:0 alone here"),
        ("cuda:4", 4, "sees cuda:0 to cuda:3 here"),
    ],
)
def test_a_device_is_found_or_refused_in_one_line(monkeypatch, chosen, gpus, found):
    with_gpus(monkeypatch, gpus)
    if "sees" not in found:
        assert find_device(chosen) == torch.device(found)
        return
    with pytest.raises(ConfigError, match=rf"^run\.device {chosen}: .*{found}") as refusal:
        find_device(chosen)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("chosen", ["gpu", "cuda:", "cuda:-1", "cuda:01", "CUDA", "cuda:0,1", "mps", ""])
def test_other_names_are_refused_with_the_params(chosen):
    with pytest.raises(ConfigError, match=r"run\.device"):
        load_params(ROOT, None, (f"run.device='{chosen}'",))


@pytest.mark.parametrize(
    ("overrides", "flow", "worker", "trains"),
    [
        ((), "cuda:0", "cuda:0", "cuda:0"),
        ((VLLM,), "cuda:0", "cpu", "cuda:0"),  # trains in the flow's process
        ((DEEPSPEED,), "cuda:0", "cuda:0", "cuda:0"),  # samples there
        ((DEEPSPEED, VLLM), "cpu", "cpu", "cuda:0"),
        ((DEEPSPEED, DASK), "cpu", "cuda:0", "cuda:0"),
        ((DASK,), "cuda:0", "cuda:0", "cuda:0"),
        ((DASK, VLLM), "cuda:0", "cpu", "cuda:0"),
        (("run.device=cpu",), "cpu", "cpu", "cpu"),
        (("run.device=cuda:1",), "cuda:1", "cuda:1", "cuda:1"),
        (("run.device=cpu", DEEPSPEED, VLLM), "cpu", "cpu", "cuda:0"),  # ranks have devices of their own
    ],
)
def test_the_policy_is_where_it_is_computed_with(monkeypatch, overrides, flow, worker, trains):
    with_gpus(monkeypatch, 2)
    params = load_params(ROOT, None, overrides)
    found = policy_device(params), policy_device(params, worker=True), training_device(params)
    assert found == tuple(map(torch.device, (flow, worker, trains)))


def test_a_missing_device_is_refused_before_anything_is_looked_for(monkeypatch, tmp_path):
    """Even the dataset is missing; and where the flow computes nothing it needs no GPU."""
    with_gpus(monkeypatch, 0)
    params = load_params(ROOT, None, ("run.device=cuda",))
    for check in (check_training, check_warmup):
        with pytest.raises(ConfigError, match=re.escape("run.device cuda: torch sees no GPU here")):
            check(params, Paths(tmp_path))
    assert policy_device(load_params(ROOT, None, ("run.device=cuda", DEEPSPEED, VLLM))) == torch.device("cpu")


def test_memory_is_that_of_the_gpu_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1000 + device.index)
    assert peak_bytes(torch.device("cuda", 3)) == 1003
    assert peak_bytes(torch.device("cpu")) is None
