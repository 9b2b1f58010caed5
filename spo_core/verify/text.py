"""Comparison of answers that are words, without regard to letter case and white space."""

from __future__ import annotations

from spo_core.verify.outcome import Outcome


def compare(given: str, gold: str) -> Outcome:
    """Compare two texts: CORRECT or WRONG."""
    return Outcome.CORRECT if _folded(given) == _folded(gold) else Outcome.WRONG


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()
