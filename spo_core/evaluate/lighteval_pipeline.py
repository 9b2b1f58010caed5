"""One run of lighteval's pipeline over the tasks of an evaluation. Runs in lighteval's environment."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from lighteval.logging.evaluation_tracker import EvaluationTracker
from lighteval.logging.info_loggers import DetailsLogger
from lighteval.pipeline import ParallelismManager, Pipeline, PipelineParameters

from spo_core.evaluate import exchange
from spo_core.evaluate.exchange import Answers, Report, Request
from spo_core.evaluate.lighteval_model import PolicyModel
from spo_core.evaluate.lighteval_tasks import STOPPED, make_tasks, register_only
from spo_core.files import read_jsonl
from spo_core.policy import load_policy, stop_ids
from spo_core.rollout.stops import stop_at

log = logging.getLogger("spo_core.evaluate")


def evaluate(request: Request, scratch: Path) -> tuple[list[Answers], Report]:
    """Sample completions of every question in every context; ConfigError for a context without enough positions."""
    log.info("loading the policy")
    torch.set_num_threads(request.threads)
    model, tokenizer = load_policy(exchange.POLICY)
    stops = frozenset(stop_ids(model, tokenizer))
    stop = stop_at(tokenizer, request.stop)

    def ended(ids: list[int]) -> bool:
        return ids[-1] in stops or (stop is not None and stop(ids) is not None)

    prompts = [json.loads(line)["prompt"] for _, line in read_jsonl(scratch / exchange.QUESTIONS / "test.jsonl")]
    prompt_tokens = max(len(tokenizer.encode(prompt, add_special_tokens=False)) for prompt in prompts)
    policy = PolicyModel.make(
        model,
        request.params,
        name=exchange.POLICY,
        stop_ids=stops,
        stop_strings=request.stop,
        seed=request.seed,
        max_length=request.max_length(prompt_tokens, getattr(model.config, "max_position_embeddings", None)),
        cache_dir=str(scratch / "cache"),
        progress=lambda done: exchange.write_progress(scratch, done),
    )
    tasks = make_tasks(request, scratch, ended)
    register_only(list(tasks.values()))
    pipeline = Pipeline(
        tasks=",".join(task.full_name for task in tasks.values()),
        pipeline_parameters=PipelineParameters(
            launcher_type=ParallelismManager.NONE, remove_reasoning_tags=False, bootstrap_iters=0
        ),
        evaluation_tracker=EvaluationTracker(output_dir=str(scratch / "results"), save_details=False),
        model=policy,
    )
    pipeline.evaluate()
    details, results = pipeline.get_details(), pipeline.get_results()["results"]
    answers = [
        _answers(context, detail, ended) for context, task in tasks.items() for detail in details[task.full_name]
    ]
    stopped = {c: float(results[task.full_name.replace("|", ":")][STOPPED]) for c, task in tasks.items()}
    return answers, Report(stopped, {package: version(package) for package in ("lighteval", "torch", "transformers")})


def _answers(context: str, detail: DetailsLogger.Detail, ended: Callable[[list[int]], bool]) -> Answers:
    response = detail.model_response
    return Answers(
        context=context,
        question_id=detail.doc.specific["question_id"],
        prompt_ids=response.input_tokens,
        completions=response.text,
        tokens=[len(ids) for ids in response.output_tokens],
        stopped=[ended(ids) for ids in response.output_tokens],
    )
