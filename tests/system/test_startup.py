"""The end of a command: what is registered for the exit happens, all is written, and the status is the command's."""

import os
import subprocess
import sys

from tests.conftest import ROOT

COMMAND = """
import atexit, logging, sys
from spo_core.system.startup import begin, begin_quietly, ends
begin_quietly()
class Held:
    def __del__(self):
        print("taken apart")
held = Held()
logging.basicConfig(filename=sys.argv[2], level="INFO")
atexit.register(print, "registered")
begin()
print("said", end="")
logging.info("logged")
if sys.argv[1] == "raises":
    raise ValueError("no status")
ends(int(sys.argv[1]))
sys.exit(int(sys.argv[1]))
"""


def run(status: str, log, stdout=subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COMMAND, status, str(log)]
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    return subprocess.run(
        command, cwd=ROOT, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
    )


def test_all_is_done_and_nothing_is_taken_apart(tmp_path):
    for status in (0, 2, 130):
        done = run(str(status), tmp_path / "log")
        assert (done.returncode, done.stdout, done.stderr) == (status, "saidregistered\n", "")
    assert (tmp_path / "log").read_text() == "INFO:root:logged\n" * 3


def test_an_error_ends_it_as_ever(tmp_path):
    done = run("raises", tmp_path / "log")
    assert done.returncode == 1 and "ValueError: no status" in done.stderr
    assert done.stdout == "saidregistered\ntaken apart\n"


def test_words_that_cannot_be_written_are_told(tmp_path):
    with open("/dev/full", "w") as full:
        done = run("0", tmp_path / "log", stdout=full)
    assert done.returncode == 120 and "No space left on device" in done.stderr
