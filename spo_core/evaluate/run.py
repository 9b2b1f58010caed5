"""Evaluation of a published checkpoint: reused where nothing that decides it changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from spo_core.code import code_digest
from spo_core.config import Params
from spo_core.errors import ConfigError, DataError
from spo_core.evaluate.lighteval_runner import DETAILS, evaluate_checkpoint, grading_versions
from spo_core.evaluate.result import Evaluation
from spo_core.files import file_digest, folder_digest, publish, write_text
from spo_core.paths import Paths
from spo_core.problems import problem_set
from spo_core.runs import open_run
from spo_core.verify.rules import check_grader

RESULT = "evaluation.json"
CHECKPOINTS = ("warmup", "final")
CODE = ("evaluate", "policy", "problems", "rollout/pieces", "rollout/seeds", "rollout/stops", "verify")


def check_environment(paths: Paths) -> None:
    """Raise ConfigError where lighteval's environment is missing."""
    if not os.access(paths.evaluation_python, os.X_OK):
        raise ConfigError(f"{paths.evaluation_python}: no lighteval environment here; make install creates it")


def check_evaluation(params: Params, paths: Paths, checkpoint: str) -> None:
    """Raise SPOError for whatever an evaluation would be refused for."""
    check_environment(paths)
    if checkpoint not in CHECKPOINTS:
        raise ConfigError(f"--checkpoint {checkpoint!r}: there are {' and '.join(CHECKPOINTS)}")
    check_grader(problem_set(params.data), params.verify.grader)
    folder, data = paths.checkpoint(checkpoint), paths.data(params.data.problem_set)
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: no such checkpoint; train it with python -m flows.train, or pull it with dvc pull")
    if not (data / "test.jsonl").is_file():
        raise DataError(f"{data / 'test.jsonl'}: no such dataset; prepare it with python -m flows.prepare")


def evaluate_published(
    params: Params, paths: Paths, checkpoint: str, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Evaluate checkpoints/<checkpoint> and publish its metrics file; the same content as a dict."""
    check_evaluation(params, paths, checkpoint)
    folder, data = paths.checkpoint(checkpoint), paths.data(params.data.problem_set)
    problem = problem_set(params.data)
    identity = {
        "checkpoint": folder_digest(folder),
        "questions": file_digest(data / "test.jsonl"),
        "problem_set": params.data.problem_set,
        "prompts": problem.template.described() | {"rule": problem.rule},
        "verify": params.verify.model_dump(mode="json", include={"grader", "seconds"}),
        "evaluate": params.evaluate.model_dump(mode="json"),
        "seed": params.run.seed,
        "threads": params.run.threads,
        "code": code_digest(*CODE),
        "environment": file_digest(paths.evaluation_constraints),
        "grading": grading_versions(),
    }
    with open_run(paths.work, "evaluate", identity, paths.root) as run:
        result = run.path / RESULT
        if not (result.is_file() and (run.path / DETAILS).is_file()):
            evaluation = evaluate_checkpoint(
                folder,
                data,
                problem,
                params.evaluate,
                params.verify,
                seed=params.run.seed,
                threads=params.run.threads,
                python=paths.evaluation_python,
                work_dir=run.path,
                progress=progress,
            )
            write_text(result, evaluation.to_json())
        content = json.loads(Evaluation.from_json(result.read_text()).to_json()) | {"checkpoint": checkpoint}
        target = paths.evaluation(checkpoint)
        write_text(target, json.dumps(content, indent=2) + "\n")
        publish(run.path / DETAILS, target.with_suffix(".parquet"))
        return content
