"""Evaluate a checkpoint through lighteval, which lives in an environment of its own and runs as one child process.

The child samples. The completions are graded here, where a comparison that takes too long is killed; lighteval's own
figure must follow from them, and the prompts it fed to the policy must be those of training, token by token.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import spo_core
from spo_core.config import EvaluateParams, VerifyParams, digest
from spo_core.errors import ConfigError, DataError
from spo_core.evaluate import exchange
from spo_core.evaluate.details import write_details
from spo_core.evaluate.exchange import Answers, Report, Request
from spo_core.evaluate.result import Evaluation, EvaluationError
from spo_core.evaluate.scoring import check_prompts, check_stopped, grade_answers, make_cell
from spo_core.problems.base import ProblemSet, read_split
from spo_core.problems.templates import encode_prompt
from spo_core.processes import child, last_words, wait
from spo_core.verify.verifier import Verifier

DETAILS = "details.parquet"
LOG = "lighteval.log"
Progress = Callable[[int, int], None]  # (sampled completions, completions in all)


def evaluate_checkpoint(
    checkpoint: Path,
    data_dir: Path,
    problem: ProblemSet,
    params: EvaluateParams,
    verify: VerifyParams,
    *,
    seed: int,
    threads: int,
    python: Path,
    work_dir: Path,
    progress: Progress | None = None,
) -> Evaluation:
    """Sample ``params.samples`` completions of each test question in each context, and grade them.

    ``python`` is the interpreter of lighteval's environment. ``work_dir`` receives DETAILS, a row for each completion,
    and LOG. On CPU the same seed, threads and batch size give the same completions; contexts share their noise, so a
    completion that ends within a shorter context is the same in a longer one.

    Raises ConfigError for a missing ``python``, DataError for a missing checkpoint or split, and EvaluationError where
    lighteval fails, feeds other tokens than training, or reports what its completions contradict.
    """
    started = time.monotonic()
    if not (python.is_file() and os.access(python, os.X_OK)):
        raise ConfigError(f"{python}: no lighteval environment here; make install creates it")
    if not (checkpoint / "config.json").is_file():
        raise DataError(f"{checkpoint}: no checkpoint here (config.json is missing)")
    rows = read_split(data_dir, "test")[: params.questions]
    fed = _encode(checkpoint, problem, {row.question_id: row.question for row in rows})
    prompts = {row.question_id: problem.prompt(row.question) for row in rows}
    request = Request(params, list(problem.template.stop), seed, threads, os.getpid())
    answers, report = _run(request, prompts, checkpoint, python, work_dir.resolve(), progress)

    check_prompts(answers, fed)
    with Verifier(verify) as verifier:
        contexts = list(params.contexts)
        samples = grade_answers(verifier, problem, rows, answers, contexts=contexts, samples=params.samples)
    write_details(work_dir / DETAILS, (s for context in samples.values() for question in context for s in question))
    cells = {name: make_cell(length, samples[name]) for name, length in params.contexts.items()}
    check_stopped(cells, report.stopped)
    return Evaluation(
        checkpoint=checkpoint.resolve().name,
        problem_set=problem.name,
        samples=params.samples,
        temperature=params.temperature,
        top_p=params.top_p,
        seed=seed,
        grader=verify.grader,
        prompt_digest=digest(list(prompts.values())),
        versions=report.versions | grading_versions(),
        seconds=round(time.monotonic() - started, 3),
        generated_tokens=sum(sum(row.tokens) for row in answers),
        cells=cells,
    )


def _run(
    request: Request,
    prompts: dict[str, str],
    checkpoint: Path,
    python: Path,
    work_dir: Path,
    progress: Progress | None,
) -> tuple[list[Answers], Report]:
    """Run the child in a fresh scratch folder; its answers and its report."""
    scratch, log = work_dir / "scratch", work_dir / LOG
    total = len(prompts) * request.params.samples * len(request.params.contexts)

    def tick() -> None:
        if progress:
            progress(exchange.read_progress(scratch), total)

    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        request.write(scratch, prompts)
        (scratch / exchange.POLICY).symlink_to(checkpoint.resolve())
        command = [os.path.abspath(python), "-m", "spo_core.evaluate.lighteval_child", str(scratch)]
        with child(command, cwd=scratch, env=_environment(scratch, request.threads), log=log) as process:
            status = wait(process, tick)
        if status != 0:
            raise EvaluationError(f"lighteval failed: {last_words(log, status)} (see {log})")
        tick()
        return exchange.read_answers(scratch), exchange.read_report(scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def grading_versions() -> dict[str, str]:
    """Of the libraries that verdicts depend on, here in the main environment."""
    return {package: version(package) for package in ("math-verify", "latex2sympy2_extended", "sympy")}


def _encode(checkpoint: Path, problem: ProblemSet, questions: dict[str, str]) -> dict[str, list[int]]:
    """Token ids of the prompts as training feeds them, by question id."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return {key: encode_prompt(problem.template, tokenizer, question) for key, question in questions.items()}


def _environment(scratch: Path, threads: int) -> dict[str, str]:
    """Of the child: this project but none of our packages, no network, no cache outside the scratch folder."""
    foreign = ("PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "HF_", "HUGGING_FACE_", "TRANSFORMERS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
        "PYTHONPATH": str(Path(spo_core.__file__).resolve().parents[1]),
        "PYTHONNOUSERSITE": "1",
        "PYTHONSAFEPATH": "1",
        "PYTHONHASHSEED": "0",  # lighteval orders its tasks by a set
        "HF_HOME": str(scratch / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads are many times slower beside another process
        "MALLOC_MMAP_THRESHOLD_": str(2**30),  # the key/value cache is copied at every token: memory that glibc keeps
        "MALLOC_TRIM_THRESHOLD_": str(2**32),  # and does not map anew makes decoding up to twice as fast
        "MALLOC_TOP_PAD_": str(2**26),
    }
