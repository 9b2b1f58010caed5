"""Workers with rules that do what no rule should; run by the pool under test."""

import os
import signal
import sys
import time

from spo_core.verify import comparison_worker
from spo_core.verify.fork_server import MEMORY, serve
from spo_core.verify.outcome import Outcome
from spo_core.verify.rules import RULES


def sleep(given: str, gold: str) -> Outcome:
    time.sleep(float(given))
    return Outcome.CORRECT


def tower(given: str, gold: str) -> Outcome:
    """One uninterruptible call: no signal handler runs before it ends."""
    return Outcome.CORRECT if len(str(3 ** int(given))) == int(gold) else Outcome.WRONG


def die(given: str, gold: str) -> Outcome:
    os.kill(os.getpid(), signal.SIGKILL)
    return Outcome.CORRECT


def slip(given: str, gold: str) -> Outcome:
    raise ImportError("a library is gone")


def grab(given: str, gold: str) -> Outcome:
    return Outcome.CORRECT if bytearray(MEMORY) else Outcome.WRONG


def warm(given: str, gold: str) -> Outcome:
    return Outcome.CORRECT if given in sys.modules else Outcome.WRONG


def pid(given: str, gold: str) -> Outcome:
    """Leaves its process number in the file ``given``."""
    with open(given, "a") as file:
        file.write(f"{os.getpid()} {os.getppid()}\n")
    return Outcome.CORRECT


if __name__ == "__main__":
    RULES.update(sleep=sleep, tower=tower, die=die, slip=slip, grab=grab, warm=warm, pid=pid)
    serve(comparison_worker.warm, comparison_worker.compare, int(sys.argv[1]))
