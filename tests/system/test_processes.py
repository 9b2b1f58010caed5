"""The child is gone on every way out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import spo_core
from spo_core.system.processes import child, last_words

ROOT = Path(spo_core.__file__).resolve().parents[1]
ENV = os.environ | {"PYTHONPATH": str(ROOT)}
SLEEPER = "import os, sys, time; {guard}; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"


def gone(pid: int) -> bool:
    """Ended; a zombie that a container's init has not collected counts."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def pid_in(path: Path) -> int:
    until(lambda: path.is_file() and path.read_text())
    return int(path.read_text())


def test_status_and_log(tmp_path):
    code = "import sys, time; print('out'); sys.stderr.write('err\\n'); time.sleep(.3); sys.exit(7)"
    with child([sys.executable, "-c", code], cwd=tmp_path, env=ENV, log=tmp_path / "log") as process:
        assert process.wait() == 7
    assert sorted((tmp_path / "log").read_text().split()) == ["err", "out"]


def test_leaving_the_block_kills_the_whole_group(tmp_path):
    grandchild = SLEEPER.format(guard="pass")
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}, sys.argv[1]])"
    with pytest.raises(KeyboardInterrupt):  # noqa: SIM117
        with child([sys.executable, "-c", code, "pid"], cwd=tmp_path, env=ENV, log=tmp_path / "log") as process:
            pid = pid_in(tmp_path / "pid")
            raise KeyboardInterrupt
    assert process.returncode == -signal.SIGKILL
    until(lambda: gone(pid))


@pytest.mark.skipif(sys.platform != "linux", reason="the death signal is Linux's")
def test_the_child_dies_with_its_parent(tmp_path):
    guard = "from spo_core.system.processes import die_with; die_with(int(sys.argv[2]))"
    parent = (
        "import os, sys; from pathlib import Path; from spo_core.system.processes import child\n"
        f"command = [sys.executable, '-c', {SLEEPER.format(guard=guard)!r}, 'pid', str(os.getpid())]\n"
        "with child(command, cwd=Path.cwd(), env=os.environ, log=Path('log')) as process: process.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path, env=ENV) as process:
        try:
            pid = pid_in(tmp_path / "pid")
        finally:
            process.kill()
    until(lambda: gone(pid))


def test_a_child_without_its_parent_does_not_start():
    code = "from spo_core.system.processes import die_with; die_with(1 << 22)"
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True)
    assert done.returncode == 1
    assert "is gone" in done.stderr


@pytest.mark.parametrize(
    ("log", "status", "words"),
    [
        ("Traceback (most recent call last):\n  x\na.b.SomeError: it broke\n\nnote\n", 1, "a.b.SomeError: it broke"),
        ("first\nlast\n\n", 2, "last"),
        ("", 3, "exit status 3"),
        ("whatever\n", -9, "ended by SIGKILL"),
    ],
)
def test_last_words(tmp_path, log, status, words):
    (tmp_path / "log").write_text(log)
    assert last_words(tmp_path / "log", status) == words
