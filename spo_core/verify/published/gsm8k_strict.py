"""The published GSM8K grader, for comparison (docs/reference.md 4.1).

The reward of -2 for more than one ``####`` is an outcome of its own (``several_answers``), decided by the caller.
"""

from __future__ import annotations

from spo_core.verify.outcome import Outcome


def extract(completion: str) -> str | None:
    """Text after the last ``####``, following lines included; None without one."""
    _, marker, rest = completion.rpartition("####")
    return rest.strip() if marker else None


def compare(given: str, gold: str) -> Outcome:
    """CORRECT for equal texts. Commas are removed from ``given`` only, and no number is parsed: 42.0 is not 42."""
    same = given.strip().replace(",", "").lower() == gold.strip().lower()
    return Outcome.CORRECT if same else Outcome.WRONG
