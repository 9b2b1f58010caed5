"""How long each question of an iteration took."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QuestionSeconds:
    """How long a question took. ``sampling``: from when the engine took up its first request until its last response
    ended; ``grading``: the calls that graded its responses. Questions are sampled together, and graded together where
    they end together, so their seconds overlap."""

    question_id: str
    sampling: float
    grading: float


@dataclass(slots=True)
class Watch:
    """Times a question while its tree grows, by ``time.perf_counter``."""

    began: float = math.inf
    ended: float = 0.0
    grading: float = 0.0
    graded_between: float = 0.0  # seconds of grading before the last response so far ended

    def request(self, began: float, ended: float) -> None:
        self.began, self.ended, self.graded_between = min(self.began, began), ended, self.grading

    def seconds(self, question_id: str) -> QuestionSeconds:
        sampling = self.ended - self.began - self.graded_between
        return QuestionSeconds(question_id, round(sampling, 4), round(self.grading, 4))
