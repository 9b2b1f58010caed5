"""The lighteval task of an evaluation: one for each context, alike but for the length of a completion.

Runs in lighteval's environment.
"""

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

from spo_core.evaluate.exchange import QUESTIONS, Request
from spo_core.evaluate.scoring import grade_completion
from spo_core.problems import problem_set
from spo_core.problems.base import ProblemSet

ACCURACY = "accuracy"


def make_tasks(request: Request, scratch: Path, stop_ids: frozenset[int]) -> dict[str, LightevalTaskConfig]:
    """The task of each context, by the context's name. Tasks are named by number: lighteval parses their names."""
    problem = problem_set(request.problem_set)
    return {
        context: LightevalTaskConfig(
            name=f"spo_{index}",
            prompt_function=_prompt_function(problem),
            hf_repo=str(scratch / QUESTIONS),
            hf_subset="default",
            hf_avail_splits=["test"],
            evaluation_splits=["test"],
            generation_size=length,
            stop_sequence=[],
            metrics=[_accuracy(problem, request.params.samples, stop_ids)],
        )
        for index, (context, length) in enumerate(request.params.contexts.items())
    }


def register_only(tasks: list[LightevalTaskConfig]) -> None:
    """Make these the only tasks: lighteval imports all of its own, of which one downloads and another fails offline."""
    table = {task.name: task for task in tasks}
    Registry.load_all_task_configs = staticmethod(lambda custom_tasks=None, load_multilingual=False: table)


def _prompt_function(problem: ProblemSet) -> Callable[[dict[str, Any], str], Doc]:
    def prompt(row: dict[str, Any], task_name: str) -> Doc:
        return Doc(
            query=problem.prompt(row["question"]),
            choices=[row["answer"]],
            gold_index=0,
            specific={"question_id": row["question_id"]},
        )

    return prompt


def _accuracy(problem: ProblemSet, samples: int, stop_ids: frozenset[int]) -> SampleLevelMetric:
    """Mean over questions of the fraction of completions that are correct."""

    def reward(doc: Doc, response: ModelResponse) -> float:
        (completion,), (ids,) = response.text, response.output_tokens
        return grade_completion(problem, completion, doc.choices[0], stopped=ids[-1] in stop_ids).reward

    return SampleLevelMetric(
        metric_name=ACCURACY,
        higher_is_better=True,
        category=SamplingMethod.GENERATIVE,
        sample_level_fn=AvgAtN(n=samples, sample_scoring_function=reward),
        corpus_level_fn=np.mean,
    )
