"""Opening a training run: its directory locked, policy, engine and trainer loaded, the newest checkpoint restored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from spo_core.config import LearnParams, Params
from spo_core.errors import ConfigError, RunError
from spo_core.learn.backend import TorchBackend, TrainerHandle
from spo_core.learn.critic import Critic, CriticHandle, own_model
from spo_core.learn.deepspeed.critic import RankedCritic
from spo_core.learn.deepspeed.trainer import DeepSpeedTrainer
from spo_core.learn.gold_answer import AnswerValues
from spo_core.learn.precision import working_copy
from spo_core.learn.replay import ReplayBuffer
from spo_core.learn.trainer import Trainer
from spo_core.learn.tree_check import check_policy
from spo_core.paths import Paths
from spo_core.policy.checkpoint import load_policy, trained_policy
from spo_core.policy.device import use_device
from spo_core.problems import problem_set
from spo_core.problems.base import ProblemSet, Question, read_split
from spo_core.rollout.engines import make_engine
from spo_core.runs.directory import RunDirectory, open_run
from spo_core.train.checkpoints import restore, restore_rollouts
from spo_core.train.gold_values import answer_values
from spo_core.train.identity import check_length, policy_device, training_run
from spo_core.train.questions import fitting_questions, question_order
from spo_core.train.sampling import RolloutWorker
from spo_core.train.session import Session
from spo_core.train.shards import MapShards, Shards
from spo_core.verify.verifier import Verifier

_OPEN: dict[Path, Session] = {}


def session(directory: str) -> Session:
    """The open session of a run directory."""
    try:
        return _OPEN[Path(directory)]
    except KeyError:
        raise RunError(f"{directory}: no training session is open there in this process") from None


@contextmanager
def open_session(
    params: Params,
    paths: Paths,
    *,
    replay: str | None = None,
    rollouts_only: bool = False,
    map_shards: MapShards | None = None,
) -> Iterator[Session]:
    """Lock the run's directory and load what it needs, from its newest complete checkpoint if it has one.

    ``replay`` is the directory of recorded rollouts to train on; with ``rollouts_only`` the policy stays as it is.
    ``map_shards`` has shards of questions sampled by the cluster that ``run.task_runner`` names.
    """
    if (map_shards is None) != (params.run.task_runner.type == "local"):
        raise ConfigError(
            f"run.task_runner {params.run.task_runner.type}: open the session with a cluster of that type"
        )
    use_device(policy_device(params))
    planned = training_run(params, paths, replay=replay, rollouts_only=rollouts_only)
    torch.set_num_threads(params.run.threads)
    with open_run(paths.work, planned.stage, planned.identity, paths.root, params.run.name) as run:
        check_length(run, params)
        current = _load(params, paths, run, planned.learn, map_shards)
        try:
            current.recorded = planned.recorded
            assert planned.learn.max_logprob_gap is not None
            current.max_logprob_gap = planned.learn.max_logprob_gap
            number = run.resume_point()
            if number is not None:
                restore(current, number)
            elif rollouts_only:
                restore_rollouts(current)
            run.rewind_metrics(current.iteration)
            current.recall(run.read_metrics())
            _OPEN[run.path] = current
            yield current
        finally:
            _OPEN.pop(run.path, None)
            with ExitStack() as closing:  # closes each, even where closing another fails
                for part in (current.trainer, current.rollouts):
                    closing.callback(part.close)


def _load(params: Params, paths: Paths, run: RunDirectory, learn: LearnParams, map_shards: MapShards | None) -> Session:
    problem = problem_set(params.data)
    rows, validation = (read_split(paths.data(params.data.problem_set), s) for s in ("train", "validation"))
    if params.rollout.questions > len(rows):
        raise ConfigError(f"rollout.questions {params.rollout.questions} exceeds the {len(rows)} questions to train on")
    policy, lora = paths.checkpoint("warmup"), params.policy.lora
    model, tokenizer = trained_policy(policy, lora, seed=params.run.seed, dtype=learn.dtype)
    longest = getattr(model.config, "max_position_embeddings", params.rollout.longest_context)
    if params.rollout.longest_context > longest:
        raise ConfigError(
            f"rollout.context_length {params.rollout.longest_context} exceeds the policy's {longest} positions"
        )
    rows, validation, prompts = fitting_questions(params, problem, tokenizer, model, rows, validation)
    model.to(policy_device(params))  # type: ignore[arg-type]
    working = working_copy(model, learn)
    with ExitStack() as opened:  # ends what was started where a later step fails
        rollouts: RolloutWorker | Shards
        if map_shards is not None:
            rollouts = Shards(run.path, params, policy, model, map_shards)
            opened.callback(rollouts.close)
        else:
            engine = make_engine(params, working, tokenizer, policy=policy, folder=run.path / "engine")
            opened.callback(engine.close)
            verifier = opened.enter_context(Verifier(params.verify))
            rollouts = RolloutWorker(params, problem, verifier, working, tokenizer, engine, prompts)
        trainer = _learner(params.model_copy(update={"learn": learn}), policy, model, working, run)
        opened.callback(trainer.close)
        current = Session(
            params,
            run,
            problem,
            rows,
            validation,
            model,
            working,
            tokenizer,
            rollouts,
            trainer,
            ReplayBuffer(params.learn),
            question_order(params, problem, rows),
            _critic(params, model, trainer),
            _answers(params, problem, rows, tokenizer, trainer),
        )
        opened.pop_all()  # the session's own to close from here on
    return current


def _critic(params: Params, model: PreTrainedModel, trainer: TrainerHandle) -> CriticHandle | None:
    """Make the critic that ``credit.value`` describes, as it is before it has learnt anything; ``model`` is the first
    policy."""
    chosen = params.credit.value
    if chosen.type != "critic":
        return None
    if isinstance(trainer, DeepSpeedTrainer):
        return RankedCritic(trainer, chosen)
    assert isinstance(trainer, Trainer)
    shares = params.rewards_are_shares
    first = own_model(model, chosen)
    return Critic(first, trainer.backend, chosen, params.learn, probabilities=shares, seed=params.run.seed)


def _answers(
    params: Params, problem: ProblemSet, rows: list[Question], tokenizer: Any, trainer: TrainerHandle
) -> AnswerValues | None:
    chosen = params.credit.value
    return answer_values(chosen, problem, rows, tokenizer, trainer) if chosen.type == "gold_answer" else None


def _learner(
    params: Params, policy: Path, model: PreTrainedModel, working: PreTrainedModel, run: RunDirectory
) -> TrainerHandle:
    """Make the trainer. ``policy`` is the folder of ``model``, and of the reference policy where there is one."""
    temperature, seed, longest = params.rollout.temperature, params.run.seed, params.rollout.longest_context
    loads_reference = params.learn.needs_reference and params.policy.lora is None  # it is the policy without them
    if params.learn.backend.type == "deepspeed":
        reference = policy if loads_reference else None
        log_file, value = run.path / "deepspeed.log", params.credit.value
        return DeepSpeedTrainer(
            model,
            params.learn,
            policy=policy,
            reference=reference,
            lora=params.policy.lora,
            critic=(value, params.rewards_are_shares) if value.type == "critic" else None,
            context_length=longest,
            temperature=temperature,
            seed=seed,
            log=log_file,
        )
    frozen = load_policy(policy)[0].eval().requires_grad_(False).to(model.device) if loads_reference else None
    backend = TorchBackend(model, frozen, params.learn, working)
    check_policy(backend.policy, longest)
    return Trainer(backend, params.learn, temperature=temperature, seed=seed)
