"""The values of ``credit.value`` gold_answer for a run's questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spo_core.config import GoldAnswer
from spo_core.learn.backend import TrainerHandle
from spo_core.learn.deepspeed.gold_answer import ranked_score
from spo_core.learn.deepspeed.trainer import DeepSpeedTrainer
from spo_core.learn.gold_answer import AnswerValues, Ending, Score, answer_logprobs, ending
from spo_core.learn.trainer import Trainer
from spo_core.problems.base import ProblemSet, Question
from spo_core.problems.mixture import set_of


def answer_values(
    params: GoldAnswer, problem: ProblemSet, rows: Sequence[Question], tokenizer: Any, trainer: TrainerHandle
) -> AnswerValues:
    """Values of states by the probability of their question's answer, computed where the policy is trained."""
    gold = {row.question_id: row.answer for row in rows}

    def of(question_id: str) -> Ending:
        return ending(params, set_of(problem, question_id).template.answer, tokenizer, gold[question_id])

    return AnswerValues(of, _score(trainer))


def _score(trainer: TrainerHandle) -> Score:
    if isinstance(trainer, DeepSpeedTrainer):
        return ranked_score(trainer)
    assert isinstance(trainer, Trainer)
    budget = trainer.params.max_tokens_per_forward
    return lambda found: answer_logprobs(trainer.backend, found, trainer.temperature, budget)
