"""Evaluates a cell, or takes the score measured before where nothing that decides it changed, and publishes it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spo_core.config import RESOURCES, Params, VllmEngineParams, digest
from spo_core.errors import ConfigError, DataError
from spo_core.evaluate.lighteval.runner import DETAILS, check_positions, grading_versions, measure_cell
from spo_core.evaluate.models import Model
from spo_core.evaluate.result import CellScore
from spo_core.evaluate.suite import Cell, cells, evaluated_set, find_cell, graded_as, suite_questions
from spo_core.paths import Paths
from spo_core.problems import problem_set
from spo_core.problems.base import ProblemSet
from spo_core.problems.mixture import described, parts_of
from spo_core.runs.directory import open_run
from spo_core.runs.fingerprint import EVALUATION, SERVING, code_digest
from spo_core.system.files import file_digest, publish, write_text
from spo_core.system.progress import Progress
from spo_core.verify.rules import check_grader

RESULT = "score.json"


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A cell's score, and the file of its completions in the working directory."""

    score: CellScore
    details: Path


def check_environment(paths: Paths) -> None:
    """Raise ConfigError where lighteval's environment is missing."""
    if not os.access(paths.evaluation_python, os.X_OK):
        raise ConfigError(f"{paths.evaluation_python}: no lighteval environment here; make install creates it")


def chosen_cells(params: Params, name: str | None) -> list[Cell]:
    """The cell of that name, or without one all cells of the suite. Raises ConfigError for an unknown name."""
    return cells(params) if name is None else [find_cell(params, name)]


def check_evaluation(params: Params, paths: Paths, *, own: bool, cell: str | None = None) -> None:
    """Raise SPOError where an evaluation would be refused, whatever the policy; ``own`` as in ``check_suite``."""
    check_environment(paths)
    check_suite(params, own=own, cell=cell)
    prepared = paths.data(params.data.problem_set) / "test.jsonl"
    if own and not prepared.is_file():
        raise DataError(f"{prepared}: no such dataset; prepare it with python -m flows.prepare")


def check_suite(params: Params, *, own: bool, cell: str | None = None) -> None:
    """Raise SPOError where a problem set of the suite cannot be asked or graded. ``own``: the policies are the run's
    own, and must be asked with the template of training."""
    for name in dict.fromkeys(c.problem_set for c in chosen_cells(params, cell)):
        problem = evaluated_set(params, name)
        check_grader(problem, graded_as(params, name).grader)
        trained = {part.name: part for part in parts_of(problem_set(params.data))}
        if name not in trained or not own:
            _check_source(problem)
        elif problem.template != trained[name].template:
            raise ConfigError(
                f"evaluate.template {problem.template.name} is not the template of training, "
                f"{trained[name].template.name}; set it to null, or name the policy by its folder"
            )


def _check_source(problem: ProblemSet) -> None:
    try:
        problem.check_source()
    except DataError as error:
        files = f"--set 'evaluate.sources={{{problem.name}: FOLDER}}'"
        raise DataError(f"{error}\nThe folder of its files is named by {files}") from None


def check_contexts(model: Model, chosen: Sequence[Cell]) -> None:
    """Raise ConfigError for a cell longer than the policy's positions, before other cells are sampled for hours, and
    DataError where ``positions_of`` does."""
    from spo_core.policy.positions import positions_of  # with torch

    positions = positions_of(model.folder)
    for cell in chosen:
        check_positions(cell, 1, positions)


def evaluate_cell(
    params: Params,
    paths: Paths,
    model: Model,
    cell: Cell,
    progress: Progress | None = None,
) -> Evaluated:
    """Score of a policy in a cell, read from the working directory if it was measured before.

    ``progress`` is called with the numbers of completions sampled so far and in all. Raises what ``measure_cell`` does.
    """
    problem, verify = evaluated_set(params, cell.problem_set), graded_as(params, cell.problem_set)
    questions = suite_questions(params, paths, cell.problem_set)
    chosen = params.evaluate.model_dump(
        mode="json", include={"samples", "temperature", "top_p", "seed", "engine", "batch_size"}
    )
    served = isinstance(params.evaluate.engine, VllmEngineParams)
    if served:
        chosen["engine"] = {k: v for k, v in chosen["engine"].items() if k not in (*RESOURCES, "servers")}
    identity = {
        "model": model.digest,
        "questions": digest([[q.question_id, q.question, q.answer] for q in questions]),
        "problem_set": cell.problem_set,
        "context_length": cell.context_length,
        "prompts": described(problem),
        "verify": verify.model_dump(mode="json", include={"grader", "seconds"}),
        "evaluate": chosen,
        "threads": params.run.threads,
        "code": code_digest(*EVALUATION, *(SERVING if served else ())),
        "environment": file_digest(paths.evaluation_constraints),
        "grading": grading_versions(),
    }
    if served:
        from spo_core.evaluate.lighteval.serving import vllm_version  # with torch

        identity["vllm"] = vllm_version()
    with open_run(paths.work, "evaluate", identity, paths.root) as run:
        result, details = run.path / RESULT, run.path / DETAILS
        if not (result.is_file() and details.is_file()):
            measured = measure_cell(
                model.folder,
                cell,
                questions,
                problem,
                params.evaluate,
                verify,
                model=model.name,
                model_digest=model.digest,
                threads=params.run.threads,
                python=paths.evaluation_python,
                work_dir=run.path,
                progress=progress,
            )
            write_text(result, measured.to_json())
        elif progress:
            progress(len(questions) * params.evaluate.samples, len(questions) * params.evaluate.samples)
        score = replace(  # the same measurement may have been made under other names
            CellScore.from_json(result.read_text(encoding="utf-8")),
            model=model.name,
            suite=params.evaluate.suite,
            cell=cell.name,
            context=cell.context,
        )
        return Evaluated(score, details)


def publish_cell(evaluated: Evaluated, target: Path) -> None:
    """Write the score to ``target``, and its completions beside it as Parquet."""
    publish(evaluated.details, target.with_suffix(".parquet"))
    write_text(target, evaluated.score.to_json())
