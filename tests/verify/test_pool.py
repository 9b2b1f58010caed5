"""Real worker processes, with rules that hang, die and take all memory."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spo_core.errors import GradingError
from spo_core.verify import Outcome
from spo_core.verify.pool import WorkerPool
from tests.conftest import ROOT

MISBEHAVING = "tests.verify.misbehaving_worker"
TOWER = ("tower", "400000000", "0")  # minutes in one call of C
PLAIN = ("gsm8k_strict", "42", "42")
SECONDS = 1.0
PATIENCE = 20.0  # on a busy machine; a tower takes minutes


@pytest.fixture(scope="module")
def pool():
    pool = WorkerPool(2, SECONDS, MISBEHAVING)
    yield pool
    pool.close()


def timed(pool, tasks):
    started = time.monotonic()
    outcomes = pool.compare(tasks)
    return outcomes, time.monotonic() - started


def test_outcomes_stand_in_the_order_of_the_tasks(pool):
    tasks = [("gsm8k_strict", str(i % 7), "3") for i in range(200)]
    tasks[5] = ("sleep", "0.3", "")
    expected = [Outcome.CORRECT if i % 7 == 3 or i == 5 else Outcome.WRONG for i in range(200)]
    assert pool.compare(tasks) == expected
    assert pool.compare([]) == []


def test_a_tower_costs_its_own_limit_and_nobody_elses(pool):
    pool.compare([PLAIN])  # started and warm
    outcomes, seconds = timed(pool, [TOWER, *[PLAIN] * 200])
    assert outcomes == [Outcome.TIMEOUT, *[Outcome.CORRECT] * 200]
    assert seconds < SECONDS + PATIENCE
    outcomes, seconds = timed(pool, [TOWER] * 4 + [PLAIN])
    assert outcomes == [Outcome.TIMEOUT] * 4 + [Outcome.CORRECT]
    assert seconds < 2 * SECONDS + PATIENCE


def test_a_process_started_elsewhere_serves_a_pool_that_does_not_replace_it():
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", MISBEHAVING, str(theirs.fileno())]
    with theirs, subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT) as process:
        theirs.close()
        pool = WorkerPool(2, PATIENCE, MISBEHAVING, served=ours)
        assert pool.compare([PLAIN, ("die", "", ""), PLAIN]) == [Outcome.CORRECT, Outcome.TIMEOUT, Outcome.CORRECT]
        process.kill()
        process.wait()
        for _ in range(2):
            with pytest.raises(GradingError):
                pool.compare([("die", "", ""), PLAIN])
        pool.close()
        assert ours.fileno() == -1


def test_a_worker_that_dies_or_takes_all_memory_is_a_timeout_and_is_replaced():
    """At once: nobody waits for the limit of a worker that is gone."""
    pool = WorkerPool(2, 600.0, MISBEHAVING)
    tasks = [("die", "", ""), PLAIN, ("grab", "", ""), PLAIN, ("die", "", ""), PLAIN]
    outcomes, seconds = timed(pool, tasks)
    pool.close()
    assert outcomes == [Outcome.TIMEOUT, Outcome.CORRECT] * 3
    assert seconds < 300


def test_an_error_of_a_worker_is_a_timeout_and_is_told(capfd):
    pool = WorkerPool(1, 600.0, MISBEHAVING)
    outcomes = pool.compare([("slip", "", ""), PLAIN])
    pool.close()
    assert outcomes == [Outcome.TIMEOUT, Outcome.CORRECT]
    assert "ImportError: a library is gone" in capfd.readouterr().err


def test_an_interrupt_leaves_no_answer_for_a_later_task():
    """Answers under way when it came are not taken for answers to what is asked next."""
    pool = WorkerPool(1, 30.0, MISBEHAVING)
    pool.compare([PLAIN])
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            pool.compare([("sleep", "1", "")])
    finally:
        signal.signal(signal.SIGALRM, previous)
    time.sleep(1)
    assert pool.compare([("gsm8k_strict", "1", "2")]) == [Outcome.WRONG]
    pool.close()


def test_an_interrupt_at_the_start_does_not_leave_half_a_pool(monkeypatch):
    pool = WorkerPool(2, 30.0, MISBEHAVING)

    def interrupt(number):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pool, "_worker", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pool.compare([PLAIN])
    assert pool.compare([PLAIN]) == [Outcome.CORRECT]
    pool.close()
    pool.close()


def test_a_worker_that_died_idle_is_replaced(tmp_path):
    pool = WorkerPool(2, 600.0, MISBEHAVING)
    note = tmp_path / "pids"
    pool.compare([("pid", str(note), "")])
    os.kill(int(note.read_text().split()[0]), signal.SIGKILL)
    time.sleep(0.5)
    assert pool.compare([PLAIN] * 5) == [Outcome.CORRECT] * 5
    pool.close()


def test_any_text_passes_through_unchanged(pool):
    texts = ["\n", "\0", "\u2028", "\ud800", "𝟙" * 300_000, '"', "é\r\n"]
    assert pool.compare([("gsm8k_strict", f"{t}1", f"{t}1") for t in texts]) == [Outcome.CORRECT] * len(texts)


def test_workers_are_warm_when_they_are_replaced(pool):
    """The process that forks them has imported everything."""
    pool.compare([("die", "", "")] * 2)
    names = ("sympy", "latex2sympy2_extended", "math_verify")
    assert pool.compare([("warm", name, "") for name in names]) == [Outcome.CORRECT] * 3


def test_closing_leaves_no_process(tmp_path):
    pool = WorkerPool(2, 30.0, MISBEHAVING)
    note = str(tmp_path / "pids")
    pool.compare([("pid", note, ""), ("pid", note, "")])
    numbers = {int(n) for n in (tmp_path / "pids").read_text().split()}
    pool.close()
    assert not any(running(n) for n in numbers)
    assert pool.compare([PLAIN]) == [Outcome.CORRECT]  # and it may start again
    pool.close()


def test_a_killed_asker_takes_its_workers_along(tmp_path):
    """Even one that is in the middle of a call which nothing interrupts."""
    note = tmp_path / "pids"
    program = (
        "from spo_core.verify.pool import WorkerPool\n"
        f"pool = WorkerPool(2, 600.0, {MISBEHAVING!r})\n"
        f"pool.compare([('pid', {str(note)!r}, ''), {TOWER!r}])\n"
    )
    asker = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    wait_for(lambda: note.is_file() and note.read_text().endswith("\n"))
    asker.send_signal(signal.SIGKILL)
    asker.wait()
    numbers = {int(n) for n in note.read_text().split()}
    wait_for(lambda: not any(running(n) for n in numbers))


def running(number: int) -> bool:
    """Whether a process is there and no zombie that waits for a parent of ours."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


def test_workers_that_cannot_start_are_told():
    with pytest.raises(GradingError, match="did not start"):
        WorkerPool(1, 1.0, "tests.verify.no_such_module").compare([PLAIN])
