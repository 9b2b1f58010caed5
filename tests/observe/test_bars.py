"""Progress on a terminal, in a log file, and none."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from spo_core.observe import bars
from tests.conftest import ROOT

SCRIPT = """
import sys, time
from spo_core.observe.bars import bar, iterations, quiet
quiet({quiet})
with iterations(12, 2) as show:
    for number in range(3, 13):
        time.sleep(0.1)
        with bar("rollout", None, unit="tok", inner=True) as inner:
            inner.update(5)
            inner.total = 10
            inner.set_postfix(responses=3)
        row = {{"iteration": number, "reward": number / 16, "generated tokens": number * 1000, "seconds": 1.25}}
        show(row | ({{"validation accuracy": 0.5}} if number % 5 == 0 else {{}}), {{"reward": "x"}})
    print("a warning", file=sys.stderr)
with bar("short", 3, unit="it") as progress:
    progress.update(3)
"""


def shown(quiet: bool, terminal: bool) -> str:
    """What the script writes to standard error."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "100"}
    command = [sys.executable, "-c", SCRIPT.format(quiet=quiet)]
    if not terminal:
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stderr
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, env=env, stderr=theirs) as process:
        os.close(theirs)
        found = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            found += part
    os.close(ours)
    assert process.returncode == 0
    return found.decode()


def test_on_a_terminal_the_last_iterations_stand_in_a_table_above_the_bars():
    raw = shown(quiet=False, terminal=True)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", raw)
    last = text[text.rindex("iteration  ") :]
    assert re.search(r"iteration +reward +validation accuracy +generated tokens +seconds", last)
    numbers = [int(n) for n in re.findall(r"^ +(\d+) +0\.\d{3}", last, re.MULTILINE)]
    assert numbers == list(range(5, 13)), "the last eight"
    assert re.search(r" 10 +0\.625 +0\.500 +10,000 +1\.2", last) and re.search(r"train .*12/12 it reward=x", last)
    assert "rollout" not in last, "an inner bar vanishes"
    assert "\x1b[1A" in raw and "a warning" in text and "short" in text


def test_in_a_log_file_each_iteration_is_a_line():
    lines = shown(quiet=False, terminal=False).splitlines()
    assert len(lines) == 11 and lines[-1] == "a warning" and "\x1b" not in "".join(lines)
    assert lines[0] == "iteration 3, reward 0.188, generated tokens 3,000, seconds 1.2 (of 12)"
    assert (
        lines[2] == "iteration 5, reward 0.312, validation accuracy 0.500, generated tokens 5,000, seconds 1.2 (of 12)"
    )


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_leaves_warnings_alone(terminal):
    assert shown(quiet=True, terminal=terminal).split() == ["a", "warning"]


def test_long_work_in_a_log_file_is_a_line_now_and_then(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: now[0])
    with bars.bar("warm-up", 100, unit="step") as progress, bars.bar("inner", None, unit="tok", inner=True) as inner:
        for _ in range(10):
            now[0] += 9.0
            progress.update(10)
            inner.update(1)
    said = capsys.readouterr().err.splitlines()
    assert said == [f"warm-up: {n} of 100 step" for n in (30, 60, 90)]
