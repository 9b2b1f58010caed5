"""One process of lighteval's for several evaluations: each ends with who asked for it, and the others go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile

import psutil
import pytest

from spo_core.evaluate.cross_check import LightevalMetric
from spo_core.evaluate.lighteval.process import LOG, SHARED, Lighteval, lighteval_shared
from spo_core.evaluate.result import EvaluationError
from tests.conftest import ROOT
from tests.evaluate.lighteval.test_runner import save_random_policy, script
from tests.flows.conftest import EVALUATION_PYTHON, needs_evaluation
from tests.rollout.vllm.test_replicas import members, until

ASKER = """
import sys, time
from pathlib import Path
from spo_core.evaluate.lighteval.process import Lighteval
with Lighteval(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])) as asked:
    print(asked.pid, asked.positions(), flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
@needs_evaluation
def test_a_killed_asker_takes_its_evaluation_along_and_no_other(tmp_path):
    policy = save_random_policy(tmp_path / "policy")
    folder = tmp_path / "killed"
    folder.mkdir()
    command = [sys.executable, "-c", ASKER, str(policy), str(EVALUATION_PYTHON), str(folder)]
    with Lighteval(policy, EVALUATION_PYTHON, tmp_path) as other, LightevalMetric(other.metric, workers=1) as metric:
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as asker:
            try:
                assert asker.stdout is not None
                pid, positions = map(int, asker.stdout.readline().split())
                assert positions == 64
                assert psutil.Process(pid).ppid() != asker.pid  # what is shared has forked it
                until(lambda: len(members(pid)) == 2)  # it, and what serves its metric
            finally:
                asker.send_signal(signal.SIGKILL)
        until(lambda: not members(pid))
        assert metric.grade("expr", [("#### 3", "3")]) == ["correct"] and other.positions() == 64


@pytest.mark.slow
@needs_evaluation
def test_where_the_shared_one_is_gone_an_evaluation_has_its_own(tmp_path, monkeypatch):
    policy = save_random_policy(tmp_path / "policy")
    with monkeypatch.context() as alone:
        alone.delenv(SHARED, raising=False)
        with lighteval_shared(EVALUATION_PYTHON):
            folder = os.environ[SHARED]
            with lighteval_shared(EVALUATION_PYTHON):
                assert os.environ[SHARED] == folder
        assert SHARED not in os.environ
        for gone in (folder, str(tmp_path)):
            alone.setenv(SHARED, gone)
            with Lighteval(policy, EVALUATION_PYTHON, tmp_path) as own:
                assert own.positions() == 64


def test_a_long_path_of_temporary_files_is_no_hindrance(tmp_path, monkeypatch):
    long = tmp_path / ("long" * 30)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with Lighteval(tmp_path, script(tmp_path, "exit 1"), tmp_path) as asked, pytest.raises(EvaluationError):
        asked.positions()


def test_a_process_that_ends_before_it_forks_is_told_by_its_last_words(tmp_path):
    python = script(tmp_path, "echo 'ImportError: no such thing' >&2; exit 3")
    with Lighteval(tmp_path, python, tmp_path) as asked, pytest.raises(EvaluationError) as error:
        asked.positions()
    assert str(error.value) == f"lighteval failed: ImportError: no such thing (see {tmp_path / LOG})"
