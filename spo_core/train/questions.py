"""Choice of a run's questions: those whose prompts fit, each once before any is asked again, in an order drawn from the
seed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from spo_core.config import Params
from spo_core.errors import DataError
from spo_core.problems.base import ProblemSet, Question
from spo_core.problems.templates import encode_prompts
from spo_core.rollout.seeds import derive_seed

log = logging.getLogger(__name__)


def draw_questions(rows: Sequence[Question], count: int, *, seed: int, iteration: int) -> list[Question]:
    """Draw an iteration's questions, counted from 1: a pure function, so that a resume needs no saved state."""
    orders: dict[int, np.ndarray] = {}
    drawn = []
    for position in range((iteration - 1) * count, iteration * count):
        epoch, place = divmod(position, len(rows))
        if epoch not in orders:
            orders[epoch] = np.random.default_rng(derive_seed(seed, "questions", epoch)).permutation(len(rows))
        drawn.append(rows[orders[epoch][place]])
    return drawn


def fitting_questions(
    params: Params, problem: ProblemSet, tokenizer: Any, model: Any, rows: list[Question], validation: list[Question]
) -> tuple[list[Question], list[Question], dict[str, list[int]]]:
    """Leave out questions beyond ``data.max_question_tokens``, and say how many; what is left of both splits, and the
    token ids of every prompt by its question.

    Raises DataError where too few are left, and for the first question whose prompt leaves no room for a completion or
    holds a token that the policy does not know.
    """
    most = params.data.max_question_tokens
    if most is not None:
        rows = _short_enough(rows, "train", params.rollout.questions, most, tokenizer)
        validation = _short_enough(validation, "validation", 1, most, tokenizer)
    limit, known = params.rollout.shortest_context, model.config.get_text_config().vocab_size
    asked = {row.question: row.question_id for row in [*rows, *validation]}
    prompts = dict(zip(asked, encode_prompts(problem.template, tokenizer, list(asked)), strict=True))
    for question, ids in prompts.items():
        if len(ids) >= limit:
            raise DataError(
                f"question {asked[question]}: its prompt has {len(ids)} tokens, rollout.context_length is {limit}; "
                "raise it, or leave long questions out with data.max_question_tokens"
            )
        if max(ids) >= known:
            token = tokenizer.convert_ids_to_tokens(max(ids))
            raise DataError(
                f"question {asked[question]}: token {token!r} of its prompt has id {max(ids)}, the policy knows "
                f"{known} tokens: tokenizer and weights do not belong together"
            )
    return rows, validation, prompts


def _short_enough(rows: list[Question], split: str, fewest: int, most: int, tokenizer: Any) -> list[Question]:
    """Keep the questions of at most ``most`` tokens, the template not counted."""
    encoded = tokenizer([row.question for row in rows], add_special_tokens=False)["input_ids"]
    kept = [row for row, ids in zip(rows, encoded, strict=True) if len(ids) <= most]
    log.log(
        logging.WARNING if len(kept) < len(rows) else logging.INFO,
        "data.max_question_tokens %d leaves out %d of %d questions of split %s",
        most,
        len(rows) - len(kept),
        len(rows),
        split,
    )
    if len(kept) < fewest:
        raise DataError(
            f"data.max_question_tokens {most} leaves {len(kept)} questions of split {split}, fewer than {fewest}"
        )
    return kept
