"""The update, the warm-up and our engine on a device that is not the CPU, emulated: no tensor is left behind on it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def test_nothing_mixes_the_cpu_with_another_device():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/learn/on_other_device.py"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-5000:]
    assert " passed" in run.stdout
