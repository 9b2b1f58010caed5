"""Grading. Reads the completion only, never the prompt; every outcome has a name, none is a silent 0."""

from spo_core.verify.outcome import Outcome, Verdict

__all__ = ["Outcome", "Verdict"]
