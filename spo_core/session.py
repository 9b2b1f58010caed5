"""What a training run holds in memory between its tasks: policy, engine, trainer, questions.

Tasks exchange paths and small records; models stay here. A task names its session by the run's directory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spo_core.config import Params
from spo_core.errors import ConfigError, DataError, RunError
from spo_core.files import read_json, write_json
from spo_core.learn.state import load_optimizer, save_optimizer
from spo_core.learn.trainer import Trainer
from spo_core.paths import Paths
from spo_core.policy import load_policy, save_policy, stop_ids
from spo_core.problems import problem_set
from spo_core.problems.base import ProblemSet, Question, read_split
from spo_core.rollout.sampler import Prompt
from spo_core.rollout.transformers_engine import TransformersEngine
from spo_core.runs import RunDirectory, open_run
from spo_core.training_run import check_length, training_identity

log = logging.getLogger(__name__)
_OPEN: dict[Path, Session] = {}


@dataclass(slots=True)
class Session:
    """A training run under way. ``iteration`` is the last finished one."""

    params: Params
    run: RunDirectory
    problem: ProblemSet
    rows: list[Question]
    validation: list[Question]
    model: Any
    tokenizer: Any
    engine: TransformersEngine
    trainer: Trainer
    iteration: int = 0
    generated_tokens: int = 0

    @property
    def finished(self) -> bool:
        budget = self.params.run.max_generated_tokens
        return self.iteration >= self.params.run.iterations or (budget is not None and self.generated_tokens >= budget)

    def prompt(self, row: Question) -> Prompt:
        """Token ids of a question's prompt."""
        text = self.problem.prompt(row.question)
        return Prompt(row.question_id, tuple(self.tokenizer.encode(text, add_special_tokens=False)))

    def check_prompts(self) -> None:
        """Raise DataError for the first question whose prompt leaves no room for a completion."""
        rows = [*self.rows, *self.validation]
        texts = [self.problem.prompt(row.question) for row in rows]
        limit = self.params.rollout.context_length
        for row, ids in zip(rows, self.tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True):
            if len(ids) >= limit:
                raise DataError(
                    f"question {row.question_id}: its prompt has {len(ids)} tokens, rollout.context_length is {limit}; "
                    "raise it or leave the question out"
                )

    def save(self) -> None:
        """A resumable checkpoint of the last finished iteration."""
        self.run.save_checkpoint(self.iteration, self._write, self.params.run.keep_checkpoints)

    def _write(self, folder: Path) -> None:
        save_policy(self.model, self.tokenizer, folder / "policy")
        (folder / "trainer").mkdir()
        save_optimizer(folder / "trainer" / "optimizer.safetensors", self.model, self.trainer.optimizer)
        state = {
            "iteration": self.iteration,
            "optimizer_step": self.trainer.step,
            "generated_tokens": self.generated_tokens,
        }
        write_json(folder / "state.json", state)

    def _restore(self, number: int) -> None:
        folder = self.run.checkpoint(number)
        state = read_json(folder / "state.json")
        policy, _ = load_policy(folder / "policy")
        self.model.load_state_dict(policy.state_dict())
        load_optimizer(folder / "trainer" / "optimizer.safetensors", self.model, self.trainer.optimizer)
        self.trainer.step = state["optimizer_step"]
        self.generated_tokens = state["generated_tokens"]
        self.iteration = state["iteration"]
        log.info("resumed after iteration %d from %s", self.iteration, folder)


def session(directory: str) -> Session:
    """The open session of a run directory."""
    try:
        return _OPEN[Path(directory)]
    except KeyError:
        raise RunError(f"{directory}: no training session is open there in this process") from None


@contextmanager
def open_session(params: Params, paths: Paths) -> Iterator[Session]:
    """Lock the run's directory and load what it needs, from its newest complete checkpoint if it has one."""
    identity = training_identity(params, paths)
    torch.set_num_threads(params.run.threads)
    with open_run(paths.work, "train", identity, paths.root, params.run.name) as run:
        check_length(run, params)
        current = _load(params, paths, run)
        current.check_prompts()
        number = run.latest_checkpoint()
        if number is not None:
            current._restore(number)
        run.rewind_metrics(current.iteration)
        _OPEN[run.path] = current
        try:
            yield current
        finally:
            del _OPEN[run.path]


def _load(params: Params, paths: Paths, run: RunDirectory) -> Session:
    problem = problem_set(params.data.problem_set)
    rows, validation = (read_split(paths.data(params.data.problem_set), s) for s in ("train", "validation"))
    if params.rollout.questions > len(rows):
        raise ConfigError(f"rollout.questions {params.rollout.questions} exceeds the {len(rows)} questions to train on")
    model, tokenizer = load_policy(paths.checkpoint("warmup"))
    reference = None
    if params.learn.kl_coefficient > 0:
        reference = load_policy(paths.checkpoint("warmup"))[0].eval().requires_grad_(False)
    longest = getattr(model.config, "max_position_embeddings", params.rollout.context_length)
    if params.rollout.context_length > longest:
        raise ConfigError(
            f"rollout.context_length {params.rollout.context_length} exceeds the policy's {longest} positions"
        )
    engine = TransformersEngine(
        model,
        stop_ids=stop_ids(model, tokenizer),
        context_length=params.rollout.context_length,
        temperature=params.rollout.temperature,
        top_p=params.rollout.top_p,
        max_concurrency=params.rollout.max_concurrency,
    )
    trainer = Trainer(model, reference, params.learn, temperature=params.rollout.temperature, seed=params.run.seed)
    return Session(params, run, problem, rows, validation, model, tokenizer, engine, trainer)
