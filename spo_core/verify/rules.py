"""How answers are compared, by name: the rules of problem sets, and those of the published graders."""

from __future__ import annotations

from collections.abc import Callable

from spo_core.config import GraderName
from spo_core.errors import ConfigError
from spo_core.problems.base import ProblemSet
from spo_core.verify import game24, text
from spo_core.verify.exact import grader as exact
from spo_core.verify.outcome import Outcome
from spo_core.verify.published import gsm8k_strict, minerva, prm800k

Compare = Callable[[str, str], Outcome]  # (answer given, gold answer); may take forever on hostile mathematics

RULES: dict[str, Compare] = {
    "math": exact.compare,
    "text": text.compare,
    "game24": game24.compare,
    "minerva": minerva.compare,
    "prm800k": prm800k.compare,
    "gsm8k_strict": gsm8k_strict.compare,
}
QUICK = {"text", "game24", "gsm8k_strict"}  # linear in the text: compared in the process that asks


def rule(problem: ProblemSet, grader: GraderName) -> str:
    """Name of the rule by which a grader compares answers to this problem set."""
    return problem.rule if grader == "exact" else grader


def check_grader(problem: ProblemSet, grader: GraderName) -> None:
    """Raise ConfigError for a published grader that could find no answer of this problem set right."""
    if grader == "exact":
        return
    if problem.rule != "math":
        raise ConfigError(f"verify.grader {grader} compares mathematics, {problem.name} is compared as {problem.rule}")
    if grader == "gsm8k_strict" and problem.template.answer != "hashes":
        raise ConfigError(
            f"verify.grader gsm8k_strict reads answers after ####, template {problem.template.name} asks for boxes"
        )


def extract(problem: ProblemSet, grader: GraderName, completion: str) -> str | None:
    """The answer that a grader finds in a completion, None where it finds none."""
    if grader == "minerva":
        return minerva.extract(completion)
    if grader == "gsm8k_strict":
        return gsm8k_strict.extract(completion)
    return problem.extract(completion)


def warm() -> None:
    """Import and use once all that comparing needs, before a worker has to be quick."""
    for name in ("math", "minerva", "prm800k"):
        RULES[name](r"\frac{x+1}{2}", r"\frac{1+x}{2}")
    RULES["math"](r"\int_0^1 x\,dx", r"\frac{1}{2}")  # imports math-verify
