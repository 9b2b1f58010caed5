"""The possible outcomes of grading a completion, and the verdict on one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    """The completion states no answer."""
    UNPARSABLE = "unparsable"
    """The gold answer is mathematics and the one given cannot be read as any."""
    TIMEOUT = "timeout"
    """Comparing took longer than ``verify.seconds``, or more memory than a worker may have."""
    SEVERAL_ANSWERS = "several_answers"
    """More than one ``####``, which the published graders punish; grader exact takes the last."""
    TRUNCATED = "truncated"
    """The response was cut off by a limit, and so not graded (``rollout.truncated``)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    outcome: Outcome
    given: str | None
    """The answer found in the completion."""
