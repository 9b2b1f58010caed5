"""What a new GPU is tried with runs on the CPU in a small size, and finds what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import embedded, equality, setting, update
from benchmarks.gpu.setting import PEAKS, Setting, peak_operations
from benchmarks.tree_update import Case
from spo_core.learn.objective import WeightedTree
from tests.conftest import ROOT

# neither on the machine that it is meant for, nor needed
ABSENT = "vllm deepspeed prefect dvc wandb datasets math_verify httpx scipy matplotlib accelerate xxhash trl lighteval"
SCRIPT = f"""
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {ABSENT.split()!r} else super().find_spec(name, path, target)

sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
import runpy
runpy.run_module("benchmarks.gpu", run_name="__main__", alter_sys=True)
"""


def here(seconds: float = 60.0) -> Setting:
    return Setting(torch.device("cpu"), True, time.monotonic() + seconds)


@pytest.mark.slow
def test_every_part_runs_with_torch_and_transformers_alone(tmp_path):
    """In a process that finds no other package, and the file holds each part under the machine's name."""
    out = tmp_path / "new" / "gpu.json"
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = ["--device", "cpu", "--small", "--out", str(out)]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    (card,) = json.loads(out.read_text()).values()
    assert list(card["parts"]) == ["1", "2", "3", "4"] and card["machine"]["torch"] == torch.__version__
    equal, updates, run_, sampled = card["parts"].values()
    assert all(row["equal"] for row in equal["rows"]) and len(equal["rows"]) == 3
    (case,) = updates["cases"]
    assert case["ways"]["tree"]["tokens"] == 5 + 3 * (2 + 4 + 8) - 8 < case["ways"]["rows"]["tokens"]
    assert all(way["seconds"] > 0 and way["share_of_peak"] > 0 for way in case["ways"].values())
    assert run_["training"]["iterations"] == 2 and 0 <= run_["training"]["accuracy"] <= 1
    assert sampled["rows"][0]["tokens"] == 4 * 6
    for title in ("1. One tree", "2. Update", "3. The embedded run", "4. Sampling"):
        assert title in run.stdout


def test_without_a_gpu_it_says_so_and_is_content(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(app(), [])
    assert result.exit_code == 0 and "no GPU here: nothing is measured" in result.output
    result = CliRunner().invoke(app(), ["--part", "5"])
    assert result.exit_code == 2 and "no part 5" in result.output


def app():
    import typer

    made = typer.Typer()
    made.command()(command.command)
    return made


def test_a_wrong_gradient_is_found_and_ends_with_status_1(monkeypatch, tmp_path):
    """Paths that lack their first token."""
    from spo_core.learn import tree_attention

    original = tree_attention._added

    def forgetful(block, sees):
        mask = original(block, sees).clone()
        mask[..., 1:, 0] = float("-inf")
        return mask

    monkeypatch.setattr(tree_attention, "_added", forgetful)
    found = equality.run(here())
    assert "rows in float32, rows in bfloat16" in str(found.wrong)
    monkeypatch.setattr(command, "PARTS", {1: (equality.run, 60.0)})
    result = CliRunner().invoke(app(), ["--device", "cpu", "--small", "--out", str(tmp_path / "gpu.json")])
    assert result.exit_code == 1 and "NOT EQUAL" in result.output and "rows in float32" in result.output


def test_operations_are_those_of_a_real_model():
    """Counted by torch, of a forward and backward pass of rows without padding."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Qwen2Config, Qwen2ForCausalLM

    case = Case("", 2, 64, 4, 2, 96, 50, prompt=6, segment=6, branches=(3,))
    model = Qwen2ForCausalLM(Qwen2Config(**case.config))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(3, 12, dtype=torch.long), use_cache=False).logits.sum().backward()
    causal = update.work_of_rows(case.tree())
    assert causal.tokens == causal.projected == 3 * 12 and causal.keys == 3 * 12 * 13 // 2
    square = replace(causal, keys=3 * 12 * 12)  # what torch counts: masked pairs, too
    assert square.operations(case) == pytest.approx(counter.get_total_flops(), rel=0.1)
    tree = update.work_of_tree(case.tree(), 10**6)
    assert tree.tokens == 6 + 3 * 5 and tree.projected == 3 * 6
    assert tree.keys == sum(range(1, 7)) + 3 * sum(range(7, 12))


def test_a_first_run_is_apart_and_the_last_is_begun_in_time(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(setting.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(setting.time, "monotonic", lambda: clock[0])
    for durations, found in (
        ([30, 2, 4, 3, 9], (30, 3, 3)),
        ([30, 25, 25, 1], (30, 25, 2)),  # 80 of 100 s are over: no time for another
        ([99, 7], (99, 7, 1)),
    ):
        clock[0], left = 0.0, iter(durations)

        def work(left=left) -> None:
            clock[0] += next(left)

        assert Setting(torch.device("cpu"), False, 100.0).repeated(work, 3) == found


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA L40S", "NVIDIA L4"])
def test_the_peak_is_that_of_the_card(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    known = max((key for key in PEAKS if key in name), key=len)
    peak, source = peak_operations(Setting(torch.device("cuda", 0), False, 0.0))
    assert peak == PEAKS[known] * 1e12 and known in source


def test_an_accuracy_beyond_its_error_is_wrong():
    recorded = json.loads(embedded.RECORDED.read_text())["best_validation_accuracy"]
    for apart, wrong in ((0.0, False), (-0.05, False), (-0.3, True)):
        content = {"training": {"iterations": 40, "of": 40, "accuracy": recorded + apart}}
        assert (embedded.compared(content, 200) is not None) == wrong
    content = {"training": {"iterations": 7, "of": 40, "accuracy": 0.1}}
    assert embedded.compared(content, 200) is None and content["stopped"]


def test_the_tree_of_part_1_is_ragged():
    tree = equality.ragged(equality.CASE, 80, np.random.default_rng(0))
    assert isinstance(tree, WeightedTree) and max(tree.tree.depths) == 4
    assert len({len(node.token_ids) for node in tree.tree.nodes}) > 20
    assert {tree.tree.depths[leaf] for leaf in tree.tree.leaves} > {4}
