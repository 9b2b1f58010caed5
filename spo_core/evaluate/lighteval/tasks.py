"""The lighteval task of one cell. Runs in lighteval's environment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lighteval.metrics.metrics_sample import AvgAtN
from lighteval.metrics.utils.metric_utils import SampleLevelMetric
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.registry import Registry
from lighteval.tasks.requests import Doc, SamplingMethod

from spo_core.evaluate.lighteval.exchange import QUESTIONS, Request

NAME = "spo_0"  # not the cell's name: lighteval parses names of tasks
STOPPED = "stopped"


def make_task(request: Request, scratch: Path, ended: Callable[[list[int]], bool]) -> LightevalTaskConfig:
    """The task of a cell; ``ended`` says whether sampled token ids end with a stop token or string."""
    return LightevalTaskConfig(
        name=NAME,
        prompt_function=_prompt,
        hf_repo=str(scratch / QUESTIONS),
        hf_subset="default",
        hf_avail_splits=["test"],
        evaluation_splits=["test"],
        generation_size=request.context_length,
        stop_sequence=[],
        metrics=[_stopped(request.samples, ended)],
    )


def register_only(task: LightevalTaskConfig) -> None:
    """Make this the only task: lighteval would import all of its own, one of which downloads, another fails offline."""
    Registry.load_all_task_configs = staticmethod(lambda custom_tasks=None, load_multilingual=False: {task.name: task})


def _prompt(row: dict[str, Any], task_name: str) -> Doc:
    """The prompt of a row, without its answer: grading is outside, where slow comparisons can be killed."""
    return Doc(query=row["prompt"], choices=[""], gold_index=0, specific={"question_id": row["question_id"]})


def _stopped(samples: int, ended: Callable[[list[int]], bool]) -> SampleLevelMetric:
    """Metric: mean over questions of the fraction of completions that ended by themselves."""

    def stopped(doc: Doc, response: ModelResponse) -> float:
        (ids,) = response.output_tokens
        return float(ended(ids))

    return SampleLevelMetric(
        metric_name=STOPPED,
        higher_is_better=True,
        category=SamplingMethod.GENERATIVE,
        sample_level_fn=AvgAtN(n=samples, sample_scoring_function=stopped),
        corpus_level_fn=np.mean,
    )
