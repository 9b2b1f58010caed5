"""Problem sets, one module each."""

from __future__ import annotations

from spo_core.errors import ConfigError
from spo_core.problems.arithmetic import Arithmetic
from spo_core.problems.base import ProblemSet
from spo_core.problems.gsm8k import GSM8K

PROBLEM_SETS: dict[str, type[ProblemSet]] = {"arithmetic": Arithmetic, "gsm8k": GSM8K}


def problem_set(name: str) -> ProblemSet:
    """The problem set of that name; raises ConfigError naming those there are."""
    if name not in PROBLEM_SETS:
        raise ConfigError(f"data.problem_set: no problem set {name!r}; there are: {', '.join(sorted(PROBLEM_SETS))}")
    return PROBLEM_SETS[name]()
