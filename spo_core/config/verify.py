"""``params/verify.yaml``: how completions are graded."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from spo_core.config.custom import CustomParams, named
from spo_core.config.namespace import Namespace, Share

MOST_WORKERS = 128
GraderName = Literal["exact", "minerva", "prm800k", "gsm8k_strict"]
log = logging.getLogger(__name__)


def present_name(grader: Any) -> Any:
    """Return a grader's present name: ``corrected`` is now ``exact``."""
    return "exact" if grader == "corrected" else grader


def _accepted(grader: Any) -> Any:
    if grader == "corrected":
        log.warning("verify.grader: corrected is called exact now")
    return present_name(grader)


class RewardParams(Namespace):
    """Reward of each outcome; a truncated response has 0 (``rollout.truncated``)."""

    correct: float = 1.0
    """The answer given equals the gold answer."""
    wrong: float = 0.0
    """The answer given differs from the gold answer."""
    no_answer: float = 0.0
    """The completion states no answer."""
    unparsable: float = 0.0
    """The gold answer is mathematics, the one given is not."""
    timeout: float = 0.0
    """Comparing the two answers took too long."""
    several_answers: float = -2.0
    """More than one ``####``; an outcome of the published graders alone, with their reward."""

    def possible(self, grader: GraderName) -> list[float]:
        """List the rewards that outcomes of a grader can have."""
        return [r for name, r in self.model_dump().items() if grader != "exact" or name != "several_answers"]


class OutcomeReward(Namespace):
    """The outcome's reward by ``verify.rewards``; 0 for a truncated response."""

    type: Literal["outcome"]


class OverlongReward(Namespace):
    """A penalty that rises linearly over a margin before the limit (DAPO's soft overlong punishment)."""

    type: Literal["overlong"]
    margin: int = Field(ge=1)
    """Length of the margin in tokens; it ends at the most tokens that the response could have had."""
    penalty: float = Field(default=1.0, ge=0)
    """Penalty of a response as long as the limit."""


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression ({error})") from None
    return pattern


class FormatReward(Namespace):
    """A bonus for a completion in which a regular expression is found."""

    type: Literal["format"]
    pattern: Annotated[str, AfterValidator(_compiles)]
    """Regular expression for Python's re.search in the whole completion; ``(?s)`` in front lets a dot match line
    breaks."""
    bonus: float = 0.1
    """Reward added where the pattern is found."""


Reward = OutcomeReward | OverlongReward | FormatReward | CustomParams


class VerifyParams(Namespace):
    grader: Annotated[GraderName, BeforeValidator(_accepted)] = "exact"
    """``exact``: the problem set's own rule. The others give the verdicts of the published graders."""
    rewards: RewardParams = RewardParams()
    reward: tuple[Annotated[Reward, Field(discriminator="type"), named("verify.reward")], ...] = Field(
        default=(OutcomeReward(type="outcome"),), min_length=1
    )
    """A response's reward is the sum of these. Validation and evaluation count outcomes."""
    seconds: float = Field(default=5.0, gt=0)
    """Longest wall-clock time that comparing one answer, or a reward's function on one response, may take."""
    workers: int = Field(default=2, ge=1, le=MOST_WORKERS)
    """Processes that compare answers which are not plain numbers."""
    max_failed_share: Share = 0.5
    """Stop where more than this share of an iteration's graded responses was unparsable or timed out."""

    def reward_range(self, graders: Collection[GraderName]) -> tuple[float, float] | None:
        """Return the smallest and largest reward of a response that one of ``graders`` grades; None where a function of
        the project's own decides."""
        low = high = 0.0
        for term in self.reward:
            if isinstance(term, CustomParams):
                return None
            earned = isinstance(term, OutcomeReward)
            outcomes = [reward for grader in graders for reward in self.rewards.possible(grader)] if earned else []
            bonus = term.bonus if isinstance(term, FormatReward) else 0.0
            low += min([-term.penalty if isinstance(term, OverlongReward) else 0.0, bonus, *outcomes])
            high += max([0.0, bonus, *outcomes])
        return low, high
