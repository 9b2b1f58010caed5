"""The result of evaluating one cell, with all that is needed to repeat, trace or compare it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from spo_core.config.verify import present_name
from spo_core.errors import DataError, SPOError


class EvaluationError(SPOError):
    """An evaluation whose process failed, or whose figures do not follow from its completions."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a cell was measured. Only scores of the same protocol compare."""

    problem_set: str
    context_length: int
    """Most tokens a completion may have, the stop token included."""
    questions: int
    samples: int
    """Completions of each question."""
    temperature: float
    top_p: float
    prompt_digest: str
    """SHA-256 over all prompts, whatever their order."""
    answer_digest: str
    """SHA-256 over all prompts with their gold answers, whatever their order."""
    grader: str
    """``verify.grader``."""
    engine: str
    """``transformers`` or ``vllm``."""
    dtype: str
    """Data type in which the engine computes."""
    versions: dict[str, str]
    """Versions of the packages that sample and grade, by name."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Statistics of completion lengths in tokens, the stop token included."""

    mean: float
    median: float
    p90: float
    most: int
    mean_correct: float | None
    """Mean over correct completions; None where none is correct."""


@dataclass(frozen=True, slots=True)
class CrossCheck:
    """Score of the same completions by lighteval's extractive match, which also grades truncated ones."""

    accuracy: float
    standard_error: float | None
    disagreements: int
    """Completions that one of the two graders calls correct and the other does not."""
    truncated_disagreements: int
    """Disagreements on truncated completions, which are never correct here; lighteval grades their last number."""
    timeouts: int
    """Completions that lighteval's metric did not finish with; they count as not correct there."""


@dataclass(frozen=True, slots=True)
class CellScore:
    """Score of one policy in one cell. Shares are of all completions, between 0 and 1."""

    model: str
    """Name under which the policy was asked for: warmup, final, best, a folder, a revision, a hub id."""
    model_digest: str
    """SHA-256 over the checkpoint's files."""
    suite: str
    cell: str
    """Name of the cell, ``<problem set>-<context>``."""
    context: str
    accuracy: float
    """pass@1: mean over questions of the fraction of completions that are correct."""
    standard_error: float | None
    """Standard error of the accuracy, over questions; None where one question was asked."""
    interval: tuple[float, float] | None
    """95 % interval of the accuracy on these questions, by a bootstrap over each question's samples; None where one
    completion of each was sampled."""
    majority: float
    """majority@n: fraction of questions whose most frequent answer is correct; a tie of k answers counts 1 / k."""
    truncated: float
    """Share that reached the limit without a stop; they count as not correct."""
    no_answer: float
    unparsable: float
    timeout: float
    """Share whose answers took too long to compare."""
    tokens: Tokens
    cross_check: CrossCheck | None
    """Comparison with lighteval's grading; None where lighteval has no metric for the problem set's rule."""
    protocol: Protocol
    lighteval_prompt_hash: str
    """lighteval's own hash of all prompts (``full_prompts`` in its results)."""
    seed: int
    seconds: float
    """Wall time, the start of lighteval included."""
    generated_tokens: int

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CellScore:
        """Read what ``to_json`` wrote. Raises DataError for any other text."""
        try:
            content: dict[str, Any] = json.loads(text)
            interval, check = content.pop("interval"), content.pop("cross_check")
            content["protocol"]["grader"] = present_name(content["protocol"]["grader"])
            return cls(
                tokens=Tokens(**content.pop("tokens")),
                protocol=Protocol(**content.pop("protocol")),
                interval=None if interval is None else (float(interval[0]), float(interval[1])),
                cross_check=None if check is None else CrossCheck(**check),
                **content,
            )
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise DataError(f"not the JSON of an evaluated cell: {error}; evaluate again") from None
