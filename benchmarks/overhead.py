"""What an iteration of the published size costs beside the model: seconds and memory, by step.

An engine that answers at once with random tokens replaces the real one, and the policy has two tiny layers under a
vocabulary of real size; all else is the product's own: prompts, sampler, stop strings, grading, credit, files, replay,
planning, layout, checkpoint, and writing and reading what two ranks are handed. Responses are random tokens, then a
plain number, then the end token or, in one of ten, a stop string. Shown but not counted: drawing the random tokens
(engine), and the policy's forward and backward passes and optimizer (model). Writes benchmarks/results/overhead.json.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.machine import RESULTS, describe_machine
from benchmarks.spans import Spans, resident_bytes
from spo_core.config import Params, ScratchPolicy, load_params
from spo_core.credit.pairs import read_pairs, write_pairs
from spo_core.learn import trainer
from spo_core.learn.replay import ReplayBuffer
from spo_core.learn.tree_batch import TreeBatch
from spo_core.paths import Paths
from spo_core.policy.checkpoint import make_policy, save_policy
from spo_core.problems.base import Question, write_split
from spo_core.rollout.engine import Completion, Request
from spo_core.rollout.sampler import Sampler
from spo_core.system.files import write_json
from spo_core.train import steps
from spo_core.train.opening import open_session
from spo_core.train.sampling import RolloutWorker
from spo_core.train.session import Session

NOT_COUNTED = ("engine", "model", "start of ranks")
RANKS = 2  # processes that read what is trained
ANSWERED = 256  # requests that the engine answers in one step
COMMON = (
    "run.iterations=2",  # only the first is run: the last would validate
    "run.checkpoint_every=1",
    "run.threads=2",
    "learn.max_logprob_gap=1e9",  # the random log-probs are not the policy's
    "learn.backend={type: torch}",
    "learn.dtype=float32",
    "learn.gradient_checkpointing=false",
    "rollout.engine={type: transformers}",
)


@dataclass(frozen=True, slots=True)
class Case:
    """A published preset; ``tokens``: mean length of responses, or of a tree's last segments; target in seconds."""

    name: str
    preset: str
    overrides: tuple[str, ...]
    vocabulary: int
    tokens: int
    low: float
    """Share of low-probability tokens: in SPO-chain 20 cuts in 300 tokens, at every fifth of them."""
    target: float

    def params(self, root: Path) -> Params:
        return load_params(root, self.preset, (*COMMON, *self.overrides))


CASES = (
    Case(
        "SPO-tree 6-6-6",
        "qwen1.5b-spo-tree-666",
        ("rollout.context_length=4096", "rollout.context_schedule=[]"),
        151_665,
        600,
        0.1,
        10.0,
    ),
    Case("SPO-chain", "rho1b-spo-chain-int5", (), 32_000, 300, 0.33, 60.0),
)


def random_tokenizer(vocabulary: int, special: Sequence[str], seed: int = 0) -> PreTrainedTokenizerFast:
    """Byte-level BPE with random merges, mostly of printable characters; ids 0, 1, ... are padding, BOS and EOS."""
    rng = np.random.default_rng(seed)
    tokens = ["<pad>", *special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    known, merges = set(tokens), []
    common = [t for t in tokens[len(special) + 1 :] if t.isascii() or t == "Ġ"]
    pool, longest = common * 20 + tokens[len(special) + 1 :], 10
    while len(tokens) < vocabulary:
        for left, right in rng.integers(0, len(pool), (vocabulary, 2)).tolist():
            token = pool[left] + pool[right]
            if len(token) <= longest and token not in known and len(tokens) < vocabulary:
                known.add(token)
                tokens.append(token)
                pool.append(token)
                merges.append((pool[left], pool[right]))
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    more = {"clean_up_tokenization_spaces": False, "additional_special_tokens": list(special[2:])}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token=special[0], eos_token=special[1], **more
    )


class InstantEngine:
    """An engine that answers at once: random tokens, and where a response may end, a plain number and an end."""

    gives_entropies, restarts = False, 0

    def __init__(self, case: Case, params: Params, prompts: dict[str, int], tokenizer: Any, stop: str) -> None:
        self.params, self.case, self.prompts = params, case, prompts
        self.rng = np.random.default_rng(1)
        self.lowest, self.highest = len(tokenizer.all_special_ids) + 1, len(tokenizer)
        template = "\n#### {}" if case.name == "SPO-chain" else "\n\\boxed{{{}}}"
        encode = lambda text: np.asarray(tokenizer.encode(text, add_special_tokens=False), np.int32)  # noqa: E731
        self.answers = [encode(template.format(n)) for n in range(4)]
        self.stop, self.end = encode(stop), np.asarray([tokenizer.eos_token_id], np.int32)
        self.waiting: list[Request] = []
        self.version: int | None = None

    def submit(self, requests: Iterable[Request]) -> None:
        self.waiting += requests

    @property
    def busy(self) -> bool:
        return bool(self.waiting)

    def step(self) -> list[Completion]:
        asked, self.waiting = self.waiting[:ANSWERED], self.waiting[ANSWERED:]
        return [self._answer(request) for request in asked]

    def _answer(self, request: Request) -> Completion:
        inside = len(request.token_ids) - self.prompts.get(request.tree, len(request.token_ids))
        segment = self.params.credit.partition
        wanted = self.case.tokens - (inside if segment.type == "cutpoints" else 0)
        ends = request.max_tokens > (segment.tokens if segment.type == "fixed_tokens" else 0)
        count = max(8, int(wanted * self.rng.uniform(0.8, 1.2))) if ends else request.max_tokens
        tail = []
        if ends:
            tail = [self.answers[self.rng.integers(len(self.answers))]]
            tail += [self.stop, self.random(5)] if self.rng.random() < 0.1 else [self.end]
        length = sum(map(len, tail))
        ids = np.concatenate([self.random(max(1, count - length)), *tail])[: request.max_tokens]
        stopped = bool(ids[-1] == self.end[0])
        low = self.rng.random(len(ids)) < self.case.low
        logprobs = np.where(low, -0.2 - self.rng.random(len(ids)), -0.01).astype(np.float32)
        return Completion(request.request_id, ids, logprobs, stopped)

    def random(self, count: int) -> np.ndarray:
        return self.rng.integers(self.lowest, self.highest, count, np.int32)

    def release(self, request_id: int) -> None: ...

    def policy_changed(self, version: int) -> None:
        self.version = version

    def sleep(self) -> None: ...

    def close(self) -> None: ...


def prepare(case: Case, params: Params, paths: Paths) -> None:
    """Write questions and a first policy, as the stages before training leave them."""
    special = (
        ("<s>", "</s>")
        if case.preset.startswith("rho")
        else ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
    )
    tokenizer = random_tokenizer(case.vocabulary, special)
    shape = ScratchPolicy(
        type="scratch", tokenizer="bytes", hidden_size=8, layers=2, heads=1, intermediate_size=8, max_positions=8192
    )
    save_policy(make_policy(shape, tokenizer, seed=0), tokenizer, paths.checkpoint("warmup"))
    data = paths.data(params.data.problem_set)
    data.mkdir(parents=True)
    for split, count in (("train", 2 * params.rollout.questions), ("validation", 2)):
        rows = [Question(f"{split}-{n}", f"What is {n} + {n}, and why? " * 4, str(n % 4)) for n in range(count)]
        write_split(data / f"{split}.jsonl", rows)


def no_logprobs(backend: Any, batch: TreeBatch, *_: Any) -> tuple[torch.Tensor, None]:
    return torch.full((len(batch.sources) + (len(batch.measured.sources) if batch.measured else 0),), -0.5), None


def watch(spans: Spans, session: Session, skip_model: bool) -> dict[str, Any]:
    """Have every step timed; returns a mapping that will hold the drawn ``pairs``."""
    kept: dict[str, Any] = {}
    draw, stops = ReplayBuffer.draw, session.rollouts.stops
    for name, stop in stops.items():
        stops[name] = None if stop is None else spans.timed("stop strings", stop)

    def keep_drawn(*arguments: Any) -> Any:
        kept["pairs"], counts = draw(*arguments)
        return kept["pairs"], counts

    spans.replace(ReplayBuffer, "draw", keep_drawn)
    spans.wrap("engine", InstantEngine, "step")
    spans.wrap("requests", Sampler, "grow")
    spans.wrap("model", RolloutWorker, "sync")
    spans.wrap("grading", RolloutWorker, "grade")
    spans.wrap("grading", steps, "check_graded")
    spans.wrap("records", steps, "write_trees", "write_credits")
    spans.wrap("metrics", steps, "rollout_metrics")
    spans.wrap("credit", steps, "assign_credit")
    spans.wrap("replay", ReplayBuffer, "add", "draw")
    spans.wrap("planning", trainer, "plan_epoch")
    spans.wrap("layout", trainer, "divide", "layout")
    spans.wrap("layout", trainer, "pass_tokens")
    spans.wrap("model", type(session.trainer.backend), "logprobs", "reference_logprobs", "backward", "step")
    spans.wrap("checkpoint", steps, "save")
    if skip_model:
        backend = type(session.trainer.backend)
        spans.replace(backend, "logprobs", no_logprobs)
        spans.replace(backend, "backward", lambda *_, **__: None)
        spans.replace(backend, "step", lambda *_: 1.0)
    return kept


def read_timed(folder: Path) -> float:
    """Read what a rank is handed; returns the seconds it took."""
    started = time.perf_counter()
    read_pairs(folder)
    return time.perf_counter() - started


def hand_over(spans: Spans, pairs: Sequence[Any], folder: Path) -> None:
    """Write what is trained, and have RANKS processes read it at once."""
    folder.mkdir()
    with spans.step("hand-over"):
        write_pairs(folder, pairs)
    with ProcessPoolExecutor(RANKS, mp_context=get_context("forkserver")) as ranks:
        with spans.step("start of ranks"):  # their imports
            list(ranks.map(read_timed, [folder] * RANKS))
            seconds = max(ranks.map(read_timed, [folder] * RANKS))
        spans.add("hand-over", seconds)


def measure(case: Case, root: Path, overrides: Sequence[str] = (), *, skip_model: bool = False) -> dict[str, Any]:
    """Measure one iteration of a case."""
    params = load_params(root, case.preset, (*COMMON, *case.overrides, *overrides))
    with tempfile.TemporaryDirectory(prefix="spo-overhead-") as name:
        paths = Paths(Path(name))
        prepare(case, params, paths)
        with open_session(params, paths) as session:
            worker = session.rollouts
            prompts = {row.question_id: len(worker.prompt(row).token_ids) for row in session.rows}
            worker.engine = InstantEngine(case, params, prompts, session.tokenizer, session.problem.template.stop[0])
            before = resident_bytes()
            with Spans() as spans:
                kept = watch(spans, session, skip_model)
                steps.rollout_step(session, 1)
                steps.credit_step(session, 1)
                row = steps.train_step(session, 1)
                hand_over(spans, kept["pairs"], Path(name, "ranks"))
            written = sum(p.stat().st_size for p in session.run.iteration(1).iterdir())
    return {
        "case": case.name,
        "model": "left out" if skip_model else "two layers of 8",
        "preset": case.preset,
        "responses": row["rollout/responses"],
        "segments": row["rollout/segments"],
        "generated_tokens": row["rollout/generated_tokens"],
        "drawn_segments": row["replay/drawn"],
        "forwarded_tokens": row["train/forwarded_tokens"],
        "iteration_bytes": written,
        "bytes_before": before,
        "steps": {
            step: {
                "seconds": spans.seconds[step],
                "cpu_seconds": spans.cpu_seconds[step],
                "calls": spans.calls[step],
                "peak_bytes": spans.peak_bytes[step],
            }
            for step in spans.seconds
        },
        "seconds": sum(s for step, s in spans.seconds.items() if step not in NOT_COUNTED),
        "cpu_seconds": sum(s for step, s in spans.cpu_seconds.items() if step not in NOT_COUNTED),
        "peak_bytes": max(b for step, b in spans.peak_bytes.items() if step not in NOT_COUNTED),
        "target_seconds": case.target,
    }


def print_table(result: dict[str, Any]) -> None:
    table = Table(title=f"{result['case']}: {result['generated_tokens']:,} tokens, {result['responses']:,} responses")
    for column in ("step", "seconds", "CPU seconds", "calls", "peak MB"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for step, of in sorted(result["steps"].items(), key=lambda item: (item[0] in NOT_COUNTED, -item[1]["seconds"])):
        name = f"({step})" if step in NOT_COUNTED else step
        table.add_row(
            name,
            f"{of['seconds']:.2f}",
            f"{of['cpu_seconds']:.2f}",
            f"{of['calls']:,}",
            f"{of['peak_bytes'] / 2**20:,.0f}",
        )
    table.add_section()
    table.add_row(
        f"all but ({', '.join(NOT_COUNTED)})",
        f"{result['seconds']:.2f}",
        f"{result['cpu_seconds']:.2f}",
        "",
        f"{result['peak_bytes'] / 2**20:,.0f}",
    )
    Console(highlight=False).print(table)


def command(
    only: Annotated[str | None, typer.Option(help="A part of a case's name; others are left out.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of torch.")] = 2,
    skip_model: Annotated[bool, typer.Option("--skip-model", help="Leave the policy's passes out altogether.")] = False,
) -> None:
    """Measure an iteration of SPO-tree and of SPO-chain; print tables, write the results."""
    torch.set_num_threads(threads)
    results = []
    for case in CASES:
        if only is None or only in case.name:
            results.append(measure(case, Path.cwd(), (f"run.threads={threads}",), skip_model=skip_model))
            print_table(results[-1])
    if only is None:
        write_json(RESULTS / "overhead.json", {"machine": describe_machine(threads), "results": results})


if __name__ == "__main__":
    typer.run(command)
