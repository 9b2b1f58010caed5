"""Which working directory a training run has, and whether it may start; no model is loaded here."""

from __future__ import annotations

from typing import Any

from spo_core.code import code_digest
from spo_core.config import Params
from spo_core.errors import DataError, RunError
from spo_core.files import folder_digest
from spo_core.paths import Paths
from spo_core.runs import RunDirectory, check_run

# what decides the trained weights, given params, data and the first policy
CODE = ("credit", "iteration", "learn", "policy", "problems", "questions", "rollout", "session", "tree", "verify")


def training_identity(params: Params, paths: Paths) -> dict[str, Any]:
    """All that decides the trained weights; raises DataError where data or policy is missing.

    How long a run goes on, how often it saves and what it is called are left out, so that a run can be extended.
    """
    data, warmup = paths.data(params.data.problem_set), paths.checkpoint("warmup")
    if not (data / "train.jsonl").is_file():
        raise DataError(f"{data}: no such dataset; prepare it with python -m flows.prepare (or dvc repro prepare)")
    if not (warmup / "config.json").is_file():
        raise DataError(f"{warmup}: no checkpoint to start from; make it with python -m flows.warmup (or dvc repro)")
    chosen = params.model_dump(mode="json", include={"rollout", "credit", "learn"})
    return {
        **chosen,
        "run": params.run.model_dump(mode="json", include={"seed", "threads", "max_generated_tokens"}),
        "problem_set": params.data.problem_set,
        "max_prompt_tokens": params.data.max_prompt_tokens,
        "data": folder_digest(data),
        "policy": folder_digest(warmup),
        "code": code_digest(*CODE),
    }


def check_training(params: Params, paths: Paths) -> None:
    """Raise SPOError for whatever would refuse the run later: missing inputs, a locked or contradicting directory."""
    run = check_run(paths.work, "train", training_identity(params, paths), params.run.name)
    check_length(run, params)


def check_length(run: RunDirectory, params: Params) -> None:
    """Raise RunError where a run already went on for longer than it now should."""
    done = run.checkpoints()
    if done and done[-1] > params.run.iterations:
        raise RunError(
            f"{run.path} already has iteration {done[-1]}, run.iterations is {params.run.iterations}; "
            f"set it to {done[-1]} or more, or choose another run.name to start over"
        )
