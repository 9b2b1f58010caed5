"""``params/verify.yaml``: how completions are graded."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from spo_core.config.base import Fraction, Namespace

MOST_WORKERS = 128
GraderName = Literal["corrected", "minerva", "prm800k", "gsm8k_strict"]


class RewardParams(Namespace):
    """Reward of each outcome; a truncated response has 0 (``rollout.truncated``)."""

    correct: float = 1.0
    """The answer given equals the gold answer."""
    wrong: float = 0.0
    """It does not."""
    no_answer: float = 0.0
    """The completion states none."""
    unparsable: float = 0.0
    """The gold answer is mathematics, the one given is not."""
    timeout: float = 0.0
    """Comparing took too long."""
    several_answers: float = -2.0
    """More than one ``####``; an outcome of the published graders alone, with their reward."""

    def possible(self, grader: GraderName) -> list[float]:
        """Those that a grader can give."""
        return [r for name, r in self.model_dump().items() if grader != "corrected" or name != "several_answers"]


class VerifyParams(Namespace):
    grader: GraderName = "corrected"
    """``corrected``: the problem set's own rule. The others give the verdicts of the published graders."""
    rewards: RewardParams = RewardParams()
    seconds: float = Field(default=5.0, gt=0)
    """Longest wall-clock time that comparing one answer may take."""
    workers: int = Field(default=2, ge=1, le=MOST_WORKERS)
    """Processes that compare answers which are not plain numbers."""
    max_failed_share: Fraction = 0.5
    """Stop where more than this share of an iteration's graded responses was unparsable or timed out."""
