"""An iteration of the GRPO preset against TRL's GRPOTrainer: the same policy, questions, group size, lengths, optimizer
and CPU threads; seconds split into rollout (sampling and rewards) and update.

Completions of the warmed-up policy end by themselves, at very different lengths as in training; in a second measurement
all are as long as a limit (ours: no token stops; TRL: min_new_tokens). Iterations of the two alternate in one process.
Needs the extra ``benchmarks``. Writes benchmarks/results/grpo_vs_trl.json.
"""

from __future__ import annotations

import copy
import os
import statistics
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments

from benchmarks.machine import RESULTS, describe_machine
from benchmarks.warmed import warmed_policy
from spo_core.config import Params, load_params
from spo_core.credit import assign_credit
from spo_core.learn.backend import TorchBackend
from spo_core.learn.trainer import Trainer
from spo_core.policy.checkpoint import load_policy, make_policy, make_tokenizer, stop_ids
from spo_core.problems import problem_set
from spo_core.rollout.sampler import Ended, Prompt, Sampler
from spo_core.rollout.transformers_engine import TransformersEngine
from spo_core.system.files import write_json


@dataclass
class Seconds:
    """Seconds of each iteration."""

    rollout: list[float] = field(default_factory=list)
    update: list[float] = field(default_factory=list)


def reward(token_ids: list[int]) -> float:
    """A meaningless reward that differs among the completions of a group: with equal ones we would train nothing."""
    return zlib.crc32(bytes(token_ids)) / 2**32


def ours(model: PreTrainedModel, tokenizer: Any, questions: list[str], params: Params, into: Seconds) -> Iterator[int]:
    """Make one iteration a step, without a run's files; yields the tokens sampled, adds its seconds to ``into``."""
    engine = TransformersEngine(
        model,
        stop_ids=() if params.rollout.max_completion_tokens else stop_ids(model, tokenizer),
        context_length=params.rollout.context_length,
        temperature=params.rollout.temperature,
        max_concurrency=len(questions) * params.rollout.branch_factors[0],
    )
    trainer = Trainer(TorchBackend(model, None, params.learn), params.learn, temperature=1.0, seed=0)
    prompts = [
        Prompt(str(i), tuple(tokenizer.encode(text, add_special_tokens=False))) for i, text in enumerate(questions)
    ]
    iteration = 0
    while True:
        iteration += 1
        started = time.perf_counter()
        engine.policy_changed(1)
        sampler = Sampler(
            engine, params.rollout, params.credit, seed=0, iteration=iteration, version=trainer.step, grade=grade
        )
        pairs = [(tree, assign_credit(tree, params.credit)) for tree in sampler.grow(prompts)]
        sampled = time.perf_counter()
        metrics = trainer.train_iteration(pairs, iteration=iteration)
        into.rollout.append(sampled - started)
        into.update.append(time.perf_counter() - sampled)
        if metrics["trained_tokens"] != sampler.generated_tokens:
            raise RuntimeError(f"trained {metrics['trained_tokens']} of {sampler.generated_tokens} sampled tokens")
        yield sampler.generated_tokens


def grade(ended: Sequence[Ended]) -> list[tuple[float, str]]:
    return [(reward(token_ids.tolist()), "correct") for _, token_ids, _ in ended]


def trl_trainer(
    model: PreTrainedModel, tokenizer: Any, questions: list[str], params: Params, into: Seconds, iterations: int
) -> Any:
    """A GRPOTrainer that makes ``iterations`` iterations and adds their seconds to ``into``."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    completions = len(questions) * params.rollout.branch_factors[0]
    length, steps = params.rollout.max_completion_tokens, params.learn.optimizer_steps
    longest_prompt = max(len(tokenizer.encode(text, add_special_tokens=False)) for text in questions)

    class Timed(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            started = time.perf_counter()
            result = super()._generate_and_score_completions(inputs)
            into.rollout.append(time.perf_counter() - started)
            return result

    class Clock(TrainerCallback):
        began = 0.0

        def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % steps == 0:
                self.began = time.perf_counter()

        def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % steps == 0:
                into.update.append(time.perf_counter() - self.began - into.rollout[-1])

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=completions // steps,
        steps_per_generation=steps,
        num_generations=params.rollout.branch_factors[0],
        max_completion_length=length or params.rollout.context_length - longest_prompt,
        temperature=params.rollout.temperature,
        top_p=1.0,
        top_k=0,
        generation_kwargs={"min_new_tokens": length} if length else None,
        learning_rate=params.learn.learning_rate,
        lr_scheduler_type="constant",
        adam_beta1=params.learn.betas[0],
        adam_beta2=params.learn.betas[1],
        max_grad_norm=params.learn.max_grad_norm,
        beta=0.0,
        loss_type="dapo",  # as ours: the mean over all tokens of an optimizer step
        max_steps=iterations * steps,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_steps=steps,
        disable_tqdm=True,
        shuffle_dataset=False,
    )

    def rewards(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        return [reward(ids) for ids in completion_ids]

    trainer = Timed(
        model,
        reward_funcs=rewards,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": questions}),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def summary(seconds: Seconds) -> dict[str, Any]:
    """Medians without the first iteration, which warms up."""
    rollout, update = seconds.rollout[1:], seconds.update[1:]
    total = [a + b for a, b in zip(rollout, update, strict=True)]
    return {
        "rollout": statistics.median(rollout),
        "update": statistics.median(update),
        "iteration": statistics.median(total),
        "all_iterations": total,
    }


def compare(optimizer_steps: int, iterations: int, length: int | None, folder: Path | None = None) -> dict[str, Any]:
    """Measure completions of ``length`` tokens; None: until the policy in ``folder`` stops or the context is full."""
    overrides = [
        "rollout.questions=64",
        f"learn.optimizer_steps={optimizer_steps}",
        f"rollout.max_completion_tokens={length or 'null'}",
    ]
    params = load_params(Path.cwd(), "grpo", tuple(overrides))
    small = params.data.model_copy(update={"train": params.rollout.questions, "validation": 1, "test": 1})
    problem = problem_set(small)
    questions = [problem.prompt(row.question) for row in problem.build()["train"]]
    if folder is None:
        tokenizer = make_tokenizer("characters", problem)
        assert params.policy.init.type == "scratch"
        model: PreTrainedModel = make_policy(params.policy.init, tokenizer, seed=0)
    else:
        model, tokenizer = load_policy(folder)
    tokenizer.padding_side = "left"
    our_seconds, their_seconds = Seconds(), Seconds()
    run = ours(copy.deepcopy(model), tokenizer, questions, params, our_seconds)
    sampled: list[int] = []

    class Alternate(TrainerCallback):
        """Makes one of our iterations after each of TRL's."""

        def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % optimizer_steps == 0:
                sampled.append(next(run))

    trainer = trl_trainer(copy.deepcopy(model), tokenizer, questions, params, their_seconds, iterations + 1)
    trainer.add_callback(Alternate())
    trainer.train()
    completions = len(questions) * params.rollout.branch_factors[0]
    theirs = [row["completions/mean_length"] for row in trainer.state.log_history if "completions/mean_length" in row]
    return {
        "completions": completions,
        "completion_tokens": length,
        "mean_completion_tokens": {"ours": statistics.mean(sampled) / completions, "trl": theirs[-1]},
        "optimizer_steps": optimizer_steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "ours": summary(our_seconds),
        "trl": summary(their_seconds),
    }


def print_table(results: list[dict[str, Any]]) -> None:
    table = Table(title=f"{results[0]['completions']} completions an iteration, seconds")
    for column in ("tokens each", "optimizer steps", "trainer", "rollout", "update", "iteration", "times faster"):
        table.add_column(column, justify="left" if column == "trainer" else "right")
    for result in results:
        for name in ("trl", "ours"):
            row = result[name]
            faster = "" if name == "trl" else f"{result['trl']['iteration'] / row['iteration']:.2f}"
            cells = (f"{row[part]:.2f}" for part in ("rollout", "update", "iteration"))
            tokens = f"{result['mean_completion_tokens'][name]:.1f}"
            table.add_row(tokens, str(result["optimizer_steps"]), name, *cells, faster)
    Console(highlight=False).print(table)


def command(
    iterations: Annotated[int, typer.Option(help="Timed iterations of each, after one that warms up.")] = 7,
    length: Annotated[int, typer.Option(help="Tokens of every completion where no token stops.")] = 29,
    threads: Annotated[int, typer.Option(help="CPU threads of torch.")] = 2,
) -> None:
    """Measure completions that end by themselves, and of one length; print a table, write the results."""
    import trl

    torch.set_num_threads(threads)
    folder = warmed_policy()
    cases = [(steps, tokens) for tokens in (None, length) for steps in (4, 1)]
    results = [compare(steps, iterations, tokens, folder if tokens is None else None) for steps, tokens in cases]
    print_table(results)
    machine = describe_machine(threads) | {"trl": trl.__version__}
    write_json(RESULTS / "grpo_vs_trl.json", {"machine": machine, "results": results})


if __name__ == "__main__":
    typer.run(command)
