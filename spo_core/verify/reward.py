"""Rewards of graded responses: the sum of the terms of ``verify.reward``, each a function of the response.

Our functions of lengths and outcomes are computed at once. A user's own, and those that search a text, run in worker
processes under ``verify.seconds``, as comparisons do.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from spo_core.config import CustomParams, FormatReward, OutcomeReward, OverlongReward, VerifyParams
from spo_core.errors import GradingError
from spo_core.problems.base import Question
from spo_core.system.plugins import project
from spo_core.verify.outcome import Outcome
from spo_core.verify.pool import WorkerPool

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Response:
    """A response with its outcome. ``tokens`` are its length, ``limit`` the most it could have had."""

    completion: str
    question: Question
    outcome: Outcome
    finish: str
    tokens: int
    limit: int


class RewardFunction(Protocol):
    """The protocol of a reward, which a path in ``verify.reward`` names."""

    def __call__(self, completion: str, question: Question, outcome: Outcome, finish: str) -> float:
        """Return the response's reward, any finite number. ``outcome`` is ``truncated`` for a response that was cut off
        and so not graded, ``finish`` is ``stop`` or ``length``."""
        ...


class Rewards:
    """Computes the rewards of a run; ``close`` it. Processes start with the first response that needs them."""

    def __init__(self, params: VerifyParams) -> None:
        self._params = params
        terms = [(f"verify.reward.{n}", term) for n, term in enumerate(params.reward)]
        asked = [(key, _called(term)) for key, term in terms if isinstance(term, CustomParams | FormatReward)]
        self._names = ", ".join(f"{key}: {custom.path}" for key, custom in asked)
        settings = {"project": str(project()), "terms": [(key, c.path, c.options) for key, c in asked]}
        self._pool: WorkerPool | None = None
        if asked:
            module = "spo_core.verify.reward_worker"
            self._pool = WorkerPool(params.workers, params.seconds, module, arguments=(json.dumps(settings),))

    @property
    def reads_texts(self) -> bool:
        """Whether a reward reads completions, those that were cut off too."""
        return self._pool is not None

    def of_outcome(self, outcome: Outcome) -> float:
        """Reward of an outcome by ``verify.rewards``; 0 for a truncated response."""
        return 0.0 if outcome is Outcome.TRUNCATED else float(getattr(self._params.rewards, outcome))

    def __call__(self, responses: Sequence[Response]) -> list[tuple[float, Outcome]]:
        """Compute reward and outcome of each response, in order.

        Where a function takes too long or its process dies, the outcome is a timeout and the reward that of one.
        Raises GradingError where one fails or gives no finite number.
        """
        own = [math.fsum(self._at_once(r, term) for term in self._params.reward) for r in responses]
        if self._pool is None:
            return [(reward, r.outcome) for reward, r in zip(own, responses, strict=True)]
        tasks = [(r.completion, asdict(r.question), str(r.outcome), str(r.finish)) for r in responses]
        found = []
        for response, reward, answer in zip(responses, own, self._pool.answers(tasks), strict=True):
            question = response.question.question_id
            if answer is None:
                log.warning(
                    "%s: took longer than verify.seconds or died on a response to question %s", self._names, question
                )
                found.append((self.of_outcome(Outcome.TIMEOUT), Outcome.TIMEOUT))
                continue
            said = json.loads(answer)
            if isinstance(said, str):
                raise GradingError(f"{said} (a response to question {question!r})")
            found.append((reward + said, response.outcome))
        return found

    def _at_once(self, response: Response, term: Any) -> float:
        if isinstance(term, OutcomeReward):
            return self.of_outcome(response.outcome)
        if isinstance(term, OverlongReward):
            return -term.penalty * overlong(response.tokens, response.limit, term.margin)
        return 0.0

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()


def overlong(tokens: int, limit: int, margin: int) -> float:
    """Share of the penalty: 0 until the margin before the limit, then rising linearly to 1 at the limit (DAPO, arXiv
    2503.14476, equation 13 with its sign turned)."""
    return min(max((tokens - (limit - margin)) / margin, 0.0), 1.0)


def format_bonus(
    completion: str, question: Question, outcome: Outcome, finish: str, options: Mapping[str, Any]
) -> float:
    """Return the bonus where the completion holds the pattern, else 0."""
    return float(options["bonus"]) if re.search(options["pattern"], completion) else 0.0


def _called(term: CustomParams | FormatReward) -> CustomParams:
    if isinstance(term, CustomParams):
        return term
    options = {"pattern": term.pattern, "bonus": term.bonus}
    return CustomParams(type="custom", path=f"{__name__}:{format_bonus.__name__}", options=options)
