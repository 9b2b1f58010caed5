"""lighteval's extractive match, in workers of its own environment (``spo_core.verify.fork_server``).

The settings are those of the published long-CoT evaluations (custom task ``math_500`` of open-r1, docs/reference.md
5.1); in lighteval 0.13 ``expr_gold_metric`` and, for LaTeX gold answers, the samples of ``latex-g-pass@k`` have them.
"""

from __future__ import annotations

import logging
from typing import NoReturn

from lighteval.metrics.dynamic_metrics import MultilingualExtractiveMatchMetric
from lighteval.metrics.utils.extractive_match_utils import ExprExtractionConfig, LatexExtractionConfig
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.requests import Doc
from lighteval.utils.language import Language

from spo_core.verify.fork_server import serve
from spo_core.verify.outcome import Outcome

METRICS = {
    kind: MultilingualExtractiveMatchMetric(
        language=Language.ENGLISH,
        gold_extraction_target=(gold,),
        pred_extraction_target=(ExprExtractionConfig(), LatexExtractionConfig(boxed_match_priority=0)),
        aggregation_function=max,
        fallback_mode="first_match",
        precision=5,
    )
    for kind, gold in (("latex", LatexExtractionConfig()), ("expr", ExprExtractionConfig()))
}


def compare(kind: str, completion: str, gold: str) -> Outcome:
    """The metric's verdict on one completion. Where it raises, the worker ends and the verdict is a timeout."""
    doc = Doc(query="", choices=[gold], gold_index=0)
    score = METRICS[kind].compute(doc=doc, model_response=ModelResponse(text=[completion]))
    return Outcome.CORRECT if score == 1.0 else Outcome.WRONG


def warm() -> None:
    """Use the metric once, so that what it loads on first use does not count against a completion's time limit."""
    logging.disable(logging.WARNING)  # the metric logs every completion in which it finds no answer
    for kind, gold in (("latex", "$2$"), ("expr", "2")):
        compare(kind, r"The final answer is $\frac{4}{2}$. I hope it is correct. \boxed{2}", gold)


def serve_metric(descriptor: int) -> NoReturn:
    """Serve the metric; see ``fork_server.serve``."""
    serve(warm, compare, descriptor)
