"""One run of lighteval's pipeline over the task of a cell. Runs in lighteval's environment."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path

import torch
from lighteval.logging.evaluation_tracker import EvaluationTracker
from lighteval.logging.info_loggers import DetailsLogger
from lighteval.models.abstract_model import LightevalModel
from lighteval.pipeline import ParallelismManager, Pipeline, PipelineParameters

from spo_core.evaluate.lighteval import exchange
from spo_core.evaluate.lighteval.endings import Endings
from spo_core.evaluate.lighteval.exchange import Answers, Report, Request
from spo_core.evaluate.lighteval.model import PolicyModel
from spo_core.evaluate.lighteval.served import ServedModel
from spo_core.evaluate.lighteval.tasks import STOPPED, make_task, register_only
from spo_core.policy.checkpoint import load_policy, stop_ids
from spo_core.policy.tokenizer import load_tokenizer

log = logging.getLogger("spo_core.evaluate")


def evaluate(request: Request, scratch: Path) -> tuple[list[Answers], Report]:
    """Sample completions of every question, in this process or from the servers; returns lighteval's report too."""
    torch.set_num_threads(request.threads)
    model, endings = _model(request, scratch)
    task = make_task(request, scratch, endings.ended)
    register_only(task)
    pipeline = Pipeline(
        tasks=task.full_name,
        pipeline_parameters=PipelineParameters(
            launcher_type=ParallelismManager.NONE, remove_reasoning_tags=False, bootstrap_iters=0
        ),
        evaluation_tracker=EvaluationTracker(output_dir=str(scratch / "results"), save_details=False),
        model=model,
    )
    pipeline.evaluate()
    results = pipeline.get_results()
    answers = [_answers(detail, endings) for detail in pipeline.get_details()[task.full_name]]
    report = Report(
        stopped=float(results["results"][task.full_name.replace("|", ":")][STOPPED]),
        prompt_hash=results["summary_general"]["hashes"]["hash_examples"],
        versions={package: version(package) for package in ("lighteval", "torch", "transformers")},
    )
    return answers, report


def _model(request: Request, scratch: Path) -> tuple[LightevalModel, Endings]:
    cache = str(scratch / "cache")

    def progress(done: int) -> None:
        exchange.write_progress(scratch, done)

    if request.servers is not None:
        log.info("asking %d servers", len(request.servers.sockets))
        tokenizer = load_tokenizer(exchange.POLICY)
        tokenizer.split_special_tokens = request.special_as_text
        endings = Endings(tokenizer, request.servers.stop_ids, request.stop)
        return ServedModel(request, request.servers, tokenizer, endings, cache_dir=cache, progress=progress), endings
    log.info("loading the policy")
    model, tokenizer = load_policy(exchange.POLICY)
    endings = Endings(tokenizer, stop_ids(model, tokenizer), request.stop)
    return PolicyModel.make(model, request, endings, cache_dir=cache, progress=progress), endings


def _answers(detail: DetailsLogger.Detail, endings: Endings) -> Answers:
    response = detail.model_response
    return Answers(
        question_id=detail.doc.specific["question_id"],
        prompt_ids=response.input_tokens,
        completions=response.text,
        tokens=[len(ids) for ids in response.output_tokens],
        stopped=[endings.ended(ids) for ids in response.output_tokens],
    )
