"""Training runs of a comparison: the product's own steps, without Prefect, two runs side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from spo_core.config import Params, flatten, load_params
from spo_core.observe.bars import bar
from spo_core.paths import Paths
from spo_core.problems.prepare import prepare_splits
from spo_core.system.processes import die_with
from spo_core.train.opening import open_session
from spo_core.train.steps import credit_step, rollout_step, train_step
from spo_core.train.warmup import warm_up

OF_THE_PROBLEM = ("data.arithmetic.", "rollout.context_length.", "policy.", "learn.warmup_steps.")
QUESTIONS = 1000  # of the validation split: the standard error of an accuracy is at most 0.016
STEPS = ("timing/rollout", "timing/advantage", "timing/train")
COMMON = (
    f"data.validation={QUESTIONS}",
    "run.iterations=1000000",  # the budget of tokens ends a run
    "run.validate_every=1000000",  # so it is validated once, at its end
    "run.checkpoint_every=20",
    "run.keep_rollouts=1",
    "run.threads=1",
    "policy.warmup.batch_size=24",  # the demo has less time
    "learn.warmup_steps=30",
)


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A line of the comparison: the params of ``preset`` (None: params/ alone) and ``overrides``."""

    name: str
    preset: str | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """One run to make: ``budget`` in generated tokens, ``problem`` a preset whose questions and first policy it has."""

    algorithm: Algorithm
    learning_rate: float
    seed: int
    budget: int
    problem: str | None = None

    @property
    def params(self) -> Params:
        own = (
            f"learn.learning_rate={self.learning_rate}",
            f"run.seed={self.seed}",
            f"run.max_generated_tokens={self.budget}",
        )
        problem = of_problem(self.problem) if self.problem else ()
        return load_params(Path.cwd(), self.algorithm.preset, (*COMMON, *problem, *self.algorithm.overrides, *own))


@dataclass(frozen=True, slots=True)
class Run:
    """What a run gave. ``accuracy``[i] is that of the policy before iteration i + 1, on that iteration's fresh
    questions, after ``tokens``[i] generated tokens and ``seconds``[i] of work; the last entry of each is of the trained
    policy, on the validation split. ``weights`` counts the questions of each."""

    algorithm: str
    learning_rate: float
    seed: int
    budget: int
    tokens: list[int]
    seconds: list[float]
    accuracy: list[float]
    weights: list[int]
    forwarded_tokens: int

    @property
    def end(self) -> float:
        """Accuracy of the trained policy."""
        return self.accuracy[-1]


def prepared(params: Params) -> None:
    """Prepare the data and the first policy that all runs share, or find them done."""
    paths = _paths()
    prepare_splits(params, paths)
    with bar("warm-up", params.policy.warmup.steps, unit="step") as progress:
        warm_up(params, paths, lambda step, _: progress.update(step - progress.n))


def make(plans: Sequence[Plan], title: str, jobs: int) -> list[Run]:
    """Make the runs, ``jobs`` at a time; returns them in the order of ``plans``. Finished ones are only read again, and
    interrupted ones go on from their last checkpoint."""
    runs: dict[int, Run] = {}
    with (
        bar(title, len(plans), unit="run") as progress,
        ProcessPoolExecutor(jobs, get_context("spawn"), initializer=die_with, initargs=(os.getpid(),)) as pool,
    ):
        started = {pool.submit(train, plan): index for index, plan in enumerate(plans)}
        for future in as_completed(started):
            runs[started[future]] = future.result()
            progress.update(1)
    return [runs[index] for index in range(len(plans))]


def train(plan: Plan) -> Run:
    """Make one run, or what is missing of it."""
    params = plan.params
    with open_session(params, _paths()) as session:
        while not session.finished:
            number = session.iteration + 1
            rollout_step(session, number)
            credit_step(session, number)
            train_step(session, number)
        return measured(plan, params, session.run.read_metrics())


def measured(plan: Plan, params: Params, rows: Sequence[dict[str, Any]]) -> Run:
    """Read a run's curve off its metrics, one row an iteration."""
    return Run(
        plan.algorithm.name,
        plan.learning_rate,
        plan.seed,
        plan.budget,
        [0, *(row["generated_tokens"] for row in rows)],
        [0.0, *_running(sum(row[step] for step in STEPS) for row in rows)],
        [*(row["rollout/accuracy"] for row in rows), rows[-1]["eval/validation_accuracy"]],
        [*(params.rollout.questions for _ in rows), QUESTIONS],
        sum(row["train/forwarded_tokens"] for row in rows),
    )


def of_problem(preset: str) -> tuple[str, ...]:
    """Overrides that give any algorithm the questions and the first policy of a preset, and its rise of the rate."""
    params = flatten(load_params(Path.cwd(), preset).model_dump(mode="json"))
    return tuple(f"{key}={json.dumps(value)}" for key, value in params.items() if f"{key}.".startswith(OF_THE_PROBLEM))


def as_json(runs: Iterable[Run]) -> list[dict[str, Any]]:
    return [asdict(run) for run in runs]


def _running(values: Iterable[float]) -> list[float]:
    total, sums = 0.0, []
    for value in values:
        total += value
        sums.append(round(total, 3))
    return sums


def _paths() -> Paths:
    return Paths(Path.cwd(), "compare")
