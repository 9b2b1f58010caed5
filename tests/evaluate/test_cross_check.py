"""lighteval's verdicts on our completions, from the real metric where its environment exists."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spo_core.config import DataParams
from spo_core.errors import GradingError
from spo_core.evaluate.cross_check import LightevalMetric, metric_kind, summarize
from spo_core.evaluate.lighteval.details import Sample
from spo_core.evaluate.lighteval.environment import child_environment
from spo_core.evaluate.lighteval.process import LOG, Lighteval
from spo_core.problems import problem_set
from spo_core.verify import Outcome
from tests.flows.conftest import EVALUATION_PYTHON, needs_evaluation
from tests.rollout.vllm.test_replicas import members

PAIRS = [
    (r"We get \boxed{\frac{1}{2}}.", "0.5"),
    (r"We get \boxed{\frac{1}{2}}.", r"\frac{2}{4}"),
    (r"first \boxed{3}, no: \boxed{4}", "3"),
    (r"first \boxed{3}, no: \boxed{4}", "4"),
    ("Therefore, the final answer is: $7$. I hope it is correct.", "7"),
    ("It may be 12 or 13", "13"),
    ("It may be 12 or 13", "12"),
    ("", "3"),
    ("no number at all", "3"),
    (r"\boxed{x + y}", "y+x"),
    (r"\boxed{(1, 2]}", "(1,2]"),
    (r"\boxed{1,234}", "1234"),
    (r"\boxed{50\%}", "0.5"),
    (r"\boxed{\text{east}}", r"\text{east}"),
    (r"\boxed{0.333333}", r"\frac13"),
    (r"\boxed{0.33}", r"\frac13"),
    ("3 + 4 = 7\n#### 7", "7"),
    ("3 + 4 = 7\n#### 8", "7"),
    ("é 𝟙\0\r\n\u2028 \\boxed{5}", "5"),
    ("so " * 30_000 + r"\boxed{5}", "5"),
]
DIRECT = """
import json, logging, sys
from lighteval.metrics.metrics import Metrics
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.requests import Doc
logging.disable(logging.WARNING)
expr = Metrics.expr_gold_metric.value.sample_level_fn.compute
latex = Metrics.g_pass_at_k_latex.value.sample_level_fn.compute_score
found = []
for text, gold in json.load(sys.stdin):
    for metric, right in ((latex, f"${gold}$"), (expr, gold)):
        doc = Doc(query="", choices=[right], gold_index=0)
        found.append(metric(doc=doc, model_response=ModelResponse(text=[text])))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lighteval")
    with Lighteval(folder, EVALUATION_PYTHON, folder) as process:
        yield process


@pytest.fixture(scope="module")
def metric(process):
    with LightevalMetric(process.metric, workers=2) as metric:
        yield metric


@pytest.mark.slow
@needs_evaluation
def test_verdicts_are_those_of_lightevals_own_metrics(metric, tmp_path):
    """Called where they stand in lighteval, in one process, one after the other."""
    done = subprocess.run(
        [EVALUATION_PYTHON, "-c", DIRECT],
        input=json.dumps(PAIRS),
        env=child_environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    scores = json.loads(done.stdout.splitlines()[-1])
    expected = ["correct" if score == 1.0 else "wrong" for score in scores]
    for offset, kind in enumerate(("latex", "expr")):
        assert metric.grade(kind, PAIRS) == expected[offset::2]
        assert metric.grade(kind, [*PAIRS[::-1], *PAIRS]) == [*expected[offset::2][::-1], *expected[offset::2]]
    assert {"correct", "wrong"} == set(expected)


@pytest.mark.slow
@needs_evaluation
def test_a_hostile_completion_ends_at_the_limit_and_costs_nobody_else_a_verdict(tmp_path):
    hostile = "1 " * 50_000  # a regular expression of lighteval's that takes minutes, which no signal interrupts
    tower = r"\boxed{9^{9^{9^{9}}}}"
    with (
        Lighteval(tmp_path, EVALUATION_PYTHON, tmp_path) as process,
        LightevalMetric(process.metric, workers=2, seconds=1.0) as metric,
    ):
        assert metric.grade("latex", [(r"\boxed{3}", "3")]) == ["correct"]  # started and warm
        started = time.monotonic()
        answers = [(hostile, "3"), *[(rf"\boxed{{{i}}}", "3") for i in range(8)], (tower, "3"), (hostile, "4")]
        verdicts = metric.grade("latex", answers)
        assert time.monotonic() - started < 3 + 20  # on a busy machine; the expression alone takes longer
    plain = ["correct" if i == 3 else "wrong" for i in range(8)]
    assert verdicts[:9] == ["timeout", *plain] and verdicts[9] in ("timeout", "wrong") and verdicts[10] == "timeout"


@pytest.mark.slow
@needs_evaluation
def test_it_begins_at_once_and_leaves_nothing_when_it_is_closed_while_it_imports(tmp_path):
    before, started = set(psutil.Process().children(recursive=True)), time.monotonic()
    with (
        Lighteval(tmp_path, EVALUATION_PYTHON, tmp_path) as process,
        LightevalMetric(process.metric, workers=2),
    ):
        assert time.monotonic() - started < 2, "it waits for the imports"
        begun = set(psutil.Process().children(recursive=True)) - before
        assert any("lighteval" in " ".join(one.cmdline()) for one in begun)
    assert not any(one.is_running() for one in begun) and [p.name for p in tmp_path.iterdir()] == [LOG]


@pytest.mark.slow
@needs_evaluation
def test_the_process_finds_this_project_and_nothing_of_its_askers_and_leaves_nothing(
    tmp_path, tmp_path_factory, monkeypatch
):
    """Not the asker's folder, whose modules may have any name, nor what its PYTHONPATH adds."""
    (tmp_path / "lighteval.py").write_text("raise SystemExit('not this one')")
    python = Path(os.path.abspath(EVALUATION_PYTHON))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    folder = tmp_path_factory.mktemp("work")
    with Lighteval(folder, python, folder) as process, LightevalMetric(process.metric, workers=2) as metric:
        assert metric.grade("expr", [("#### 3", "3"), ("#### 4", "3")]) == ["correct", "wrong"]
        pid = process.pid
        assert len(members(pid)) == 4  # it, what serves the metric, and two workers
    assert not members(pid)
    assert [p.name for p in folder.iterdir()] == [LOG]
    assert [p.name for p in tmp_path.iterdir()] == ["lighteval.py"]


def test_an_environment_without_lighteval_is_told(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    with (
        Lighteval(tmp_path, python, tmp_path) as process,
        LightevalMetric(process.metric, workers=1) as metric,
        pytest.raises(GradingError, match="did not start; see their words in the log"),
    ):
        metric.grade("expr", [("3", "3")])


def test_the_metric_follows_the_form_of_answers():
    assert metric_kind(problem_set(DataParams())) == "expr"  # arithmetic asks for ####
    assert metric_kind(problem_set(DataParams(problem_set="math", source="x"))) == "latex"
    assert metric_kind(problem_set(DataParams(problem_set="gsm8k", source="x"))) == "expr"
    assert metric_kind(problem_set(DataParams(problem_set="point24", source="x"))) is None


def sample(question: int, number: int, outcome: Outcome, verdict: str | None) -> Sample:
    return Sample(str(question), number, "", "1", None, outcome, verdict, 1)


graded = st.tuples(st.sampled_from(Outcome), st.sampled_from(["correct", "wrong", "timeout"]))


@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(graded, min_size=n, max_size=n), min_size=1, max_size=6)))
def test_summary_counts_what_a_plain_loop_counts(table):
    rows = [[sample(q, i, *cell) for i, cell in enumerate(row)] for q, row in enumerate(table)]
    found = summarize(rows)
    means = [sum(verdict == "correct" for _, verdict in row) / len(row) for row in table]
    cells = [cell for row in table for cell in row]
    differ = [outcome for outcome, verdict in cells if (outcome == "correct") != (verdict == "correct")]
    assert found.accuracy == pytest.approx(sum(means) / len(means))
    if len(means) == 1:
        assert found.standard_error is None
    else:
        assert found.standard_error == pytest.approx(statistics.stdev(means) / len(means) ** 0.5)
    assert found.disagreements == len(differ)
    assert found.truncated_disagreements == differ.count(Outcome.TRUNCATED)
    assert found.timeouts == sum(verdict == "timeout" for _, verdict in cells)
    assert summarize(rows[::-1]) == found or found.standard_error == pytest.approx(summarize(rows[::-1]).standard_error)


def test_without_verdicts_there_is_no_summary_and_half_of_them_is_refused():
    assert summarize([[sample(0, 0, Outcome.CORRECT, None)]]) is None
    with pytest.raises(ValueError, match="1 of 2"):
        summarize([[sample(0, 0, Outcome.CORRECT, None), sample(0, 1, Outcome.CORRECT, "correct")]])
    with pytest.raises(ValueError):
        summarize([])
