"""What an evaluation found: one cell a context, and all that is needed to repeat or compare it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from spo_core.errors import DataError, SPOError


class EvaluationError(SPOError):
    """An evaluation whose process failed, or whose figures do not follow from its completions."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One checkpoint in one context. Shares are of all completions, between 0 and 1."""

    context_length: int
    """Most tokens a completion may have, the stop token included."""
    questions: int
    accuracy: float
    """Mean over questions of the fraction of completions that are correct."""
    standard_error: float | None
    """Of the accuracy, over questions; None where one question was asked."""
    truncated: float
    """Share that reached the limit without a stop token; they count as not correct."""
    no_answer: float
    unparsable: float
    timeout: float
    """Share whose answers took too long to compare."""
    mean_completion_tokens: float
    """The stop token counts."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    checkpoint: str
    """Name of the checkpoint's folder."""
    problem_set: str
    samples: int
    """Completions of each question."""
    temperature: float
    top_p: float
    seed: int
    grader: str
    """``verify.grader``."""
    prompt_digest: str
    """SHA-256 over all prompts in order; only evaluations with the same one compare."""
    versions: dict[str, str]
    """Of lighteval, torch, transformers, and what grades."""
    seconds: float
    """Wall time, the start of lighteval included."""
    generated_tokens: int
    """In all cells; padding after a completion's end is not counted."""
    cells: dict[str, Cell]
    """By the context's name, in the order of ``evaluate.contexts``."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """Raises DataError for text that ``to_json`` did not write."""
        try:
            content: dict[str, Any] = json.loads(text)
            cells = {name: Cell(**cell) for name, cell in content.pop("cells").items()}
            return cls(**content, cells=cells)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"not an evaluation's JSON: {error}; evaluate again") from None
