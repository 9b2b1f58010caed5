"""Bad input on the command line: one or two lines, exit status 2, nothing computed, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.crash import Starts, starts


@pytest.fixture(scope="module")
def project(new_project) -> Path:
    return new_project()


@pytest.fixture(scope="module")
def commands(project, tmp_path_factory) -> Iterator[Starts]:
    folder = tmp_path_factory.mktemp("starts")
    alone = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    settings = {"PREFECT_HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    with starts(project, alone | settings | {"SPO_EVAL_PYTHON": sys.executable}, folder) as server:
        yield server


def files(project: Path) -> list[str]:
    listed = subprocess.run(["git", "status", "--porcelain", "--ignored"], cwd=project, capture_output=True, text=True)
    return [line for line in listed.stdout.splitlines() if "__pycache__" not in line]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "arguments", "says"),
    [
        ("flows.train", ["--set", "learn.learning_rte=1"], "unknown key learn.learning_rte"),
        ("flows.train", ["--preset", "gpro"], "no preset 'gpro'"),
        ("flows.train", ["--set", "rollout.top_p=2"], "rollout.top_p"),
        ("flows.train", [], "no such dataset; prepare it with python -m flows.prepare"),
        ("flows.warmup", [], "no such dataset; prepare it with python -m flows.prepare"),
        ("flows.evaluate", [], "checkpoints/final: no such checkpoint"),
        ("flows.evaluate", ["--model", "last"], "'last': neither one of warmup, final, best, nor a folder"),
        ("flows.evaluate", ["--model", "params"], "no checkpoint here (config.json is missing)"),
        ("flows.evaluate", ["--model", "v9:checkpoints/final"], "git knows no revision 'v9'"),
        ("flows.evaluate", ["--suite", "long"], "no suite 'long' in "),
        ("flows.evaluate", ["--cell", "arithmetic-huge"], "no such cell, but arithmetic-short, arithmetic-medium"),
        ("flows.evaluate", ["--force"], "--force goes with --compare"),
        ("flows.evaluate", ["--compare", "warmup", "final"], "checkpoints/warmup: no such checkpoint"),
        ("flows.report", [], "metrics/train.json: missing"),
        ("flows.prepare", ["--set", "data.problem_set=gsm9k"], "no problem set 'gsm9k'; there are: aime24, arithm"),
        ("flows.prepare", ["--preset", "gsm8k-smoke"], "data.source is not set"),
        ("flows.prepare", ["--problem-set", "gsm8k", "--source", "nowhere"], "nowhere/train.jsonl: no such file"),
        ("flows.prepare", ["--problem-set", "math", "--set", "data.template=r2"], "no template 'r2'; there are: "),
        ("flows.train", ["--set", "data.problem_set=aime24"], "it is evaluated, not trained on"),
    ],
)
def test_refused_at_the_start(project, commands, module, arguments, says):
    before = files(project)
    result = commands.run(project, *arguments, module=module)
    assert result.status == 2, result.stdout + result.stderr
    message = result.stderr.strip()
    assert message.startswith("error: ") and says in message and message.count("\n") <= 1, message
    assert files(project) == before
