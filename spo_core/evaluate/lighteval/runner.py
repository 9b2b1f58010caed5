"""Evaluates a checkpoint in one cell through lighteval, a child process in an environment of its own.

The child samples, or asks vLLM servers of this environment. Completions are graded here, where a comparison that takes
too long is killed, and by lighteval's metric in workers that a copy of the child forks. lighteval's report must follow
from them, and the prompts it fed to the policy must be those of training, token by token.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from spo_core.config import EvaluateParams, VerifyParams, VllmEngineParams, digest
from spo_core.errors import ConfigError, DataError
from spo_core.evaluate.cross_check import LightevalMetric, metric_kind
from spo_core.evaluate.lighteval.details import write_details
from spo_core.evaluate.lighteval.exchange import Answers, Report, Request
from spo_core.evaluate.lighteval.process import Lighteval
from spo_core.evaluate.majority import majority
from spo_core.evaluate.result import CellScore, Protocol
from spo_core.evaluate.scoring import (
    check_prompts,
    check_report,
    grade_answers,
    lighteval_prompt_hash,
    score_cell,
    with_lighteval,
)
from spo_core.evaluate.suite import Cell
from spo_core.policy.checkpoint_files import check_files
from spo_core.problems.base import ProblemSet, Question
from spo_core.problems.templates import encode_prompts, special_as_text
from spo_core.system.progress import Progress
from spo_core.verify.rules import rule
from spo_core.verify.verifier import Verifier

DETAILS = "details.parquet"
SERVERS = "servers"  # a folder with a log for each server


def measure_cell(
    checkpoint: Path,
    cell: Cell,
    questions: Sequence[Question],
    problem: ProblemSet,
    params: EvaluateParams,
    verify: VerifyParams,
    *,
    model: str,
    model_digest: str,
    threads: int,
    python: Path,
    work_dir: Path,
    progress: Progress | None = None,
) -> CellScore:
    """Sample ``params.samples`` completions of each question in one cell, and grade them.

    ``python`` is the interpreter of lighteval's environment. ``work_dir`` receives DETAILS, a row for each completion,
    LOG, and SERVERS where the engine is vllm. On CPU the same seed, threads and batch size give the same completions;
    contexts share their noise, so a completion that ends within a shorter context is the same in a longer one.

    Raises ConfigError for a missing ``python`` and for a context longer than the policy's positions, DataError for a
    missing checkpoint, EngineError where a server does not start or dies, and EvaluationError where lighteval fails,
    feeds other tokens than training, or reports what its completions contradict.
    """
    started = time.monotonic()
    work_dir = work_dir.resolve()
    if not (python.is_file() and os.access(python, os.X_OK)):
        raise ConfigError(f"{python}: no lighteval environment here; make install creates it")
    if not (checkpoint / "config.json").is_file():
        raise DataError(f"{checkpoint}: no checkpoint here (config.json is missing)")
    kind = metric_kind(problem)
    with (
        Lighteval(checkpoint, python, work_dir) as lighteval,
        LightevalMetric(lighteval.metric, verify.workers) as metric,
        Verifier(verify) as verifier,
    ):
        prompts, answers, report = _sample(lighteval, checkpoint, cell, questions, problem, params, threads, progress)
        samples = grade_answers(verifier, problem, questions, answers, samples=params.samples)
        votes = majority(verifier, rule(problem, verify.grader), samples)
        if kind is not None:
            stated = [(sample.completion, sample.gold) for row in samples for sample in row]
            samples = with_lighteval(samples, metric.grade(kind, stated))
    score = score_cell(
        cell,
        samples,
        _protocol(checkpoint, cell, questions, prompts, params, verify, report),
        majority=votes,
        prompt_hash=lighteval_prompt_hash(list(prompts.values())),
        model=model,
        model_digest=model_digest,
        suite=params.suite,
        seed=params.seed,
        seconds=time.monotonic() - started,
    )
    check_report(score, report)
    write_details(work_dir / DETAILS, chain.from_iterable(samples))
    return score


def grading_versions() -> dict[str, str]:
    """Versions, in the main environment, of the packages that decide verdicts."""
    return {package: version(package) for package in ("math-verify", "latex2sympy2_extended", "sympy")}


def check_positions(cell: Cell, prompt_tokens: int, positions: int | None) -> None:
    """Raise ConfigError for a cell whose longest prompt and completion exceed the policy's positions, if it has any."""
    if positions is not None and prompt_tokens + cell.context_length > positions:
        raise ConfigError(
            f"evaluate.contexts.{cell.context}: {cell.context_length} tokens after a prompt of {prompt_tokens} exceed "
            f"the policy's {positions} positions; lower it, or evaluate a policy that has more"
        )


def _sample(
    lighteval: Lighteval,
    checkpoint: Path,
    cell: Cell,
    questions: Sequence[Question],
    problem: ProblemSet,
    params: EvaluateParams,
    threads: int,
    progress: Progress | None,
) -> tuple[dict[str, str], list[Answers], Report]:
    """Sample all questions; returns their prompts too. Raises EvaluationError unless the prompts fed were those of
    training."""
    import scipy.stats  # noqa: F401  # as the next, while lighteval starts: scores would wait for it

    from spo_core.policy.tokenizer import load_tokenizer, require_end  # with transformers

    check_files(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    require_end(tokenizer, checkpoint)
    template = problem.template.resolved(tokenizer)
    prompts = {row.question_id: template.fill(row.question) for row in questions}
    encoded = encode_prompts(template, tokenizer, [row.question for row in questions])
    fed = {row.question_id: ids for row, ids in zip(questions, encoded, strict=True)}
    longest = max(map(len, encoded))
    check_positions(cell, longest, lighteval.positions())
    request = Request(
        context_length=cell.context_length,
        max_length=longest + cell.context_length,
        samples=params.samples,
        temperature=params.temperature,
        top_p=params.top_p,
        seed=params.seed,
        batch_size=params.batch_size,
        stop=template.stop,
        special_as_text=special_as_text(template, tokenizer),
        threads=threads,
    )
    with ExitStack() as stack:
        if isinstance(params.engine, VllmEngineParams):
            from spo_core.evaluate.lighteval.serving import checkpoint_stop_ids, serving

            servers = serving(
                checkpoint,
                params,
                stop_ids=checkpoint_stop_ids(checkpoint, tokenizer),
                context_length=request.max_length,
                folder=lighteval.work_dir / SERVERS,
            )
            request = replace(request, servers=stack.enter_context(servers))
        answers, report = lighteval.run(request, prompts, progress)
    check_prompts(answers, fed)
    return prompts, answers, report


def _protocol(
    checkpoint: Path,
    cell: Cell,
    questions: Sequence[Question],
    prompts: dict[str, str],
    params: EvaluateParams,
    verify: VerifyParams,
    report: Report,
) -> Protocol:
    versions, dtype = report.versions | grading_versions(), "float32"
    if isinstance(params.engine, VllmEngineParams):
        from spo_core.evaluate.lighteval.serving import served_dtype, vllm_version

        versions["vllm"], dtype = vllm_version(), served_dtype(checkpoint, params.engine)
    return Protocol(
        problem_set=cell.problem_set,
        context_length=cell.context_length,
        questions=len(questions),
        samples=params.samples,
        temperature=params.temperature,
        top_p=params.top_p,
        prompt_digest=digest(sorted(prompts.values())),
        answer_digest=digest(sorted([prompts[row.question_id], row.answer] for row in questions)),
        grader=verify.grader,
        engine=params.engine.type,
        dtype=dtype,
        versions=versions,
    )
