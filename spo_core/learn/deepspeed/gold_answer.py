"""Log-probs of right answers on DeepSpeed's ranks: what the flow's process asks for, and what a rank does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spo_core.learn.deepspeed.trainer import DeepSpeedTrainer
from spo_core.learn.gold_answer import Answered, Score, answer_logprobs
from spo_core.learn.trainer import Trainer
from spo_core.tree import read_trees


def ranked_score(trainer: DeepSpeedTrainer) -> Score:
    """What ``answer_logprobs`` computes, by the ranks of ``trainer``."""

    def score(found: Sequence[Answered]) -> list[float]:
        states, cues = [own.states for own in found], [own.cue for own in found]
        return trainer.hand_over("answer_logprobs", [own.tree for own in found], states=states, cues=cues)

    return score


def obey_answers(trainer: Trainer, command: dict[str, Any]) -> list[float]:
    """Do in a rank what ``ranked_score`` asks for."""
    trees = read_trees(Path(command["trees"]))
    found = [
        Answered(tree, tuple(states), cue)
        for tree, states, cue in zip(trees, command["states"], command["cues"], strict=True)
    ]
    return answer_logprobs(trainer.backend, found, trainer.temperature, trainer.params.max_tokens_per_forward)
