"""Grading: a completion and its gold answer in, an outcome out. Not here: prompts, and how a policy is sampled.

The completion alone is read, never the prompt; every outcome has a name, none is a silent 0.
"""

from spo_core.verify.outcome import Outcome, Verdict

__all__ = ["Outcome", "Verdict"]
