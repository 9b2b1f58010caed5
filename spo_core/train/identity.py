"""Identity, working directory and devices of a training run, and whether it may start; no model is loaded here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spo_core.config import RESOURCES, LearnParams, MonteCarlo, Params, VllmEngineParams
from spo_core.errors import ConfigError, DataError, RunError
from spo_core.learn.deepspeed.hostfile import read_hostfile
from spo_core.paths import Paths
from spo_core.policy.device import find_device
from spo_core.problems import problem_set
from spo_core.problems.mixture import described, grader_of, parts_of
from spo_core.rollout.gap import gap_limit
from spo_core.rollout.prover import prover_folder
from spo_core.runs.directory import RunDirectory, check_run, run_path
from spo_core.runs.fingerprint import TRAINING, code_digest
from spo_core.system.files import folder_digest, read_json
from spo_core.system.plugins import open_project
from spo_core.train.doors import sources
from spo_core.train.recorded import Recorded, read_recorded
from spo_core.verify.rules import check_grader

NO_LIMIT = 1e9  # nats a token


def training_identity(params: Params, paths: Paths) -> dict[str, Any]:
    """Collect all that decides the trained weights; raises DataError where data or policy is missing, ConfigError where
    what the project brings itself does not fit.

    How long a run goes on, how often it saves and what it is called are left out, so that a run can be extended.
    """
    problem = problem_set(params.data)
    if problem.evaluation_only:
        raise DataError(f"data.problem_set {problem.name} has a test split alone; it is evaluated, not trained on")
    for part in parts_of(problem):
        check_grader(part, grader_of(params.data, part.name, params.verify.grader))
    open_project(paths.root)
    custom = sources(params)
    data, warmup = paths.data(params.data.problem_set), paths.checkpoint("warmup")
    if not (data / "train.jsonl").is_file():
        raise DataError(f"{data}: no such dataset; prepare it with python -m flows.prepare (or dvc repro prepare)")
    if not (warmup / "config.json").is_file():
        raise DataError(f"{warmup}: no checkpoint to start from; make it with python -m flows.warmup (or dvc repro)")
    chosen = params.model_dump(mode="json", include={"rollout", "credit", "learn", "verify"})
    for key in ("workers", "max_failed_share"):  # how fast it grades and when it stops, not what it learns
        del chosen["verify"][key]
    if params.credit.value.type == "critic":
        del chosen["credit"]["value"]["min_explained_variance"]  # whether the run goes on
        chosen["credit"]["value"]["probabilities"] = params.rewards_are_shares  # which loss auto is
    if isinstance(params.rollout.engine, VllmEngineParams):
        for key in RESOURCES:  # free to change when a run is resumed
            del chosen["rollout"]["engine"][key]
    backend = params.learn.backend
    if backend.type == "deepspeed" and backend.hostfile is not None:
        read_hostfile(paths.root / backend.hostfile, backend.ranks)  # raises where it cannot be used
    chosen["learn"]["backend"].pop("hostfile", None)  # the number of ranks counts, not the machines
    run = params.run.model_dump(mode="json", include={"seed", "threads"})
    return {
        **chosen,
        "run": run | {"parts": params.run.task_runner.shards},  # batches of other sizes round differently
        "problem_set": params.data.problem_set,
        "prompts": described(problem),
        "max_question_tokens": params.data.max_question_tokens,
        "data": folder_digest(data),
        "policy": folder_digest(warmup),
        **({"lora": params.policy.lora.model_dump(mode="json")} if params.policy.lora else {}),
        "code": code_digest(*TRAINING),
        **({"custom": custom} if custom else {}),
        **_prover(params, warmup),
    }


def _prover(params: Params, policy: Path) -> dict[str, str]:
    """Digest of the prover, where one samples value rollouts. Raises ConfigError where it is missing."""
    value = params.credit.value
    if not isinstance(value, MonteCarlo) or value.prover is None:
        return {}
    return {"prover": folder_digest(prover_folder(value.prover, policy))}


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """Identity of a run. ``stage`` begins the name of its working directory, ``learn`` holds the trainer's params."""

    stage: str
    identity: dict[str, Any]
    learn: LearnParams
    recorded: Recorded | None = None


def training_run(
    params: Params, paths: Paths, *, replay: str | None = None, rollouts_only: bool = False
) -> TrainingRun:
    """Describe an ordinary run, one that trains on the trees recorded in folder ``replay``, or one that only samples.

    Raises SPOError where its inputs cannot be used. Neither of the last two can be taken for an ordinary run.
    """
    if replay is not None and rollouts_only:
        raise ConfigError("--replay samples nothing, so it does not go with --rollouts-only; leave out one of them")
    identity = training_identity(params, paths)
    learn = params.learn.model_copy(update={"max_logprob_gap": gap_limit(params)})
    if rollouts_only:
        if params.credit.value.type == "critic":
            raise ConfigError("--rollouts-only trains no critic; choose another credit.value, or leave it out")
        return TrainingRun("rollouts", identity | {"rollouts_only": True}, learn)
    if replay is None:
        return TrainingRun("train", identity, learn)
    policy = read_json(paths.checkpoint("warmup") / "config.json")
    recorded = read_recorded(Path(replay), params, identity, policy["vocab_size"])
    if not recorded.sampled_by(identity):  # another policy sampled: a gap of log-probs is no error
        learn = learn.model_copy(update={"max_logprob_gap": NO_LIMIT})
    identity |= {"replay": recorded.digest}
    if run_path(paths.work, "replay", identity, params.run.name).resolve() == recorded.path:
        raise RunError(f"{replay}: this is where the replay itself works; give the directory it was started with")
    return TrainingRun("replay", identity, learn, recorded)


def policy_device(params: Params, *, worker: bool = False) -> torch.device:
    """Device on which the flow, or a ``worker`` that samples shards for it, keeps its copy of the policy.

    That is ``run.device`` where it computes with this copy: trains it (backend torch) or samples from it (engine
    transformers). Else, with DeepSpeed's ranks on devices of their own and vLLM's engine or other processes sampling,
    it is the CPU: the copy is saved and handed over, and a probe's few tokens are computed with it.

    Raises ConfigError as ``find_device``.
    """
    trains = params.learn.backend.type == "torch" and not worker
    samples = params.rollout.engine.type == "transformers" and (worker or params.run.task_runner.type == "local")
    return find_device(params.run.device if trains or samples else "cpu")


def training_device(params: Params) -> torch.device:
    """Device on which the weights are trained, for the record: DeepSpeed's ranks take GPUs where there are any."""
    return find_device("auto" if params.learn.backend.type == "deepspeed" else params.run.device)


def check_training(params: Params, paths: Paths, *, replay: str | None = None, rollouts_only: bool = False) -> None:
    """Raise SPOError for whatever would refuse the run later: a missing device, missing inputs, a locked or
    contradicting directory."""
    policy_device(params)
    planned = training_run(params, paths, replay=replay, rollouts_only=rollouts_only)
    check_length(check_run(paths.work, planned.stage, planned.identity, params.run.name), params)


def check_length(run: RunDirectory, params: Params) -> None:
    """Raise RunError where a run already went on for longer than it now should."""
    done = run.checkpoints()
    if done and done[-1] > params.run.iterations:
        raise RunError(
            f"{run.path} already has iteration {done[-1]}, run.iterations is {params.run.iterations}; "
            f"set it to {done[-1]} or more, or choose another run.name to start over"
        )
    budget = params.run.max_generated_tokens
    if done and budget is not None:
        row = read_json(run.iteration(done[-1]) / "metrics.json")
        before = row["generated_tokens"] - row["rollout/generated_tokens"]
        if before >= budget:
            raise RunError(
                f"{run.path} already went on beyond run.max_generated_tokens {budget}, with {before} tokens before "
                f"iteration {done[-1]}; raise it, or choose another run.name to start over"
            )
