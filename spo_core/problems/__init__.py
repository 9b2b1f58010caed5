"""Problem sets: their splits, prompts, and where an answer is stated. Not here: whether an answer is right.

A set of your own is one more module and one line here, or ``data.jsonl``.
"""

from __future__ import annotations

from collections.abc import Callable

from spo_core.config import DataParams
from spo_core.errors import ConfigError
from spo_core.problems.aime24 import AIME24
from spo_core.problems.arithmetic import Arithmetic
from spo_core.problems.base import ProblemSet
from spo_core.problems.college_math import COLLEGE_MATH
from spo_core.problems.competition_math import MATH
from spo_core.problems.gsm8k import GSM8K
from spo_core.problems.mixture import Mixture
from spo_core.problems.olympiad_bench import OLYMPIAD_BENCH
from spo_core.problems.own import own_set
from spo_core.problems.point24 import Point24
from spo_core.problems.text_set import TextSet, TextSource

PROBLEM_SETS: dict[str, TextSource | Callable[[DataParams], ProblemSet]] = {
    "arithmetic": Arithmetic,
    "gsm8k": GSM8K,
    "math": MATH,
    "point24": Point24,
    "aime24": AIME24,
    "college_math": COLLEGE_MATH,
    "olympiad_bench": OLYMPIAD_BENCH,
}


def problem_set(data: DataParams) -> ProblemSet:
    """The problem set that ``data`` names or describes. Raises ConfigError, naming the sets, for an unknown one."""
    if data.mixture:
        if data.problem_set in PROBLEM_SETS:
            raise ConfigError(f"data.problem_set {data.problem_set} is built in; give the mixture another name")
        return Mixture(data, tuple(problem_set(part.data) for part in data.mixture))
    if data.jsonl is not None:
        if data.problem_set in PROBLEM_SETS:
            raise ConfigError(
                f"data.problem_set {data.problem_set} is built in; give the set that data.jsonl describes another name"
            )
        return own_set(data, data.jsonl)
    if data.problem_set not in PROBLEM_SETS:
        raise ConfigError(
            f"data.problem_set: no problem set {data.problem_set!r}; there are: {', '.join(sorted(PROBLEM_SETS))}, "
            "and your own with data.jsonl"
        )
    found = PROBLEM_SETS[data.problem_set]
    return TextSet(found, data) if isinstance(found, TextSource) else found(data)
