"""What is measured is an iteration of the product, and every step of it has its time."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from benchmarks import overhead
from benchmarks.spans import Spans
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

TREE, CHAIN = overhead.CASES
SMALL = {
    TREE.name: (
        "rollout.questions=2",
        "learn.optimizer_steps=2",
        "rollout.branch_factors=[3, 2]",
        "credit.partition.tokens=40",
    ),
    CHAIN.name: (
        "rollout.questions=2",
        "learn.optimizer_steps=2",
        "rollout.branch_factors=[3]",
        "credit.value.rollouts=2",
    ),
}


@pytest.mark.parametrize(("case", "segments"), [(TREE, 2 * (3 + 6)), (CHAIN, None)], ids=["tree", "chain"])
def test_a_small_iteration_is_measured_step_by_step(case, segments):
    small = replace(case, vocabulary=600, tokens=60)
    found = overhead.measure(
        small, ROOT, ("rollout.questions=2", "learn.optimizer_steps=2", "run.threads=1", *SMALL[case.name])
    )
    assert found["segments"] == segments or case is CHAIN
    assert found["drawn_segments"] > 0 < found["forwarded_tokens"] and found["iteration_bytes"] > 1000
    steps = {"requests", "stop strings", "grading", "credit", "records", "replay", "planning", "layout", "hand-over"}
    steps |= {"checkpoint", "metrics", "engine", "model"}
    assert all(found["steps"][step]["seconds"] > 0 for step in steps)
    counted = [of["seconds"] for step, of in found["steps"].items() if step not in overhead.NOT_COUNTED]
    assert found["seconds"] == pytest.approx(sum(counted)) and found["peak_bytes"] > 2**20
    overhead.print_table(found)


def test_a_step_s_time_is_without_the_steps_inside_it():
    class Work:
        def outer(self):
            time.sleep(0.02)
            self.inner()

        def inner(self):
            time.sleep(0.05)

    original = Work.outer
    with Spans() as spans:
        spans.wrap("outer", Work, "outer")
        spans.wrap("inner", Work, "inner")
        Work().outer()
    assert Work.outer is original
    assert 0.05 <= spans.seconds["inner"] < 0.5 and spans.seconds["outer"] >= 0.02
    assert spans.seconds["outer"] < spans.seconds["inner"] and spans.calls == {"outer": 1, "inner": 1}
