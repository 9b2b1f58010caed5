"""Runs in the worker processes that compare answers by our rules; ``pool.WorkerPool`` starts it by its name."""

from __future__ import annotations

import sys

from spo_core.verify.fork_server import serve
from spo_core.verify.outcome import Outcome
from spo_core.verify.rules import RULES, warm


def compare(rule: str, given: str, gold: str) -> Outcome:
    """Compare two answers by a rule; one that takes too much memory is a timeout."""
    try:
        return RULES[rule](given, gold)
    except MemoryError:
        return Outcome.TIMEOUT


if __name__ == "__main__":
    serve(warm, compare, int(sys.argv[1]))
