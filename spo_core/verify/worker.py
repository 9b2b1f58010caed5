"""Worker processes that compare answers: ``python -m spo_core.verify.worker <descriptor of a socket>``.

One process imports the mathematics, once, and forks a worker for every number it is sent over the socket, together
with the socket that the worker shall serve; a worker that already has the number is killed first. So a new worker is
warm within milliseconds. multiprocessing is not used: its workers import the main module again, here Prefect and torch,
and forking a process that has threads is unsafe. Requests and answers are lines of JSON; nothing is pickled.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
from contextlib import suppress

from spo_core.processes import die_with_parent
from spo_core.verify.outcome import Outcome
from spo_core.verify.rules import RULES, warm

MEMORY = 4 * 2**30  # bytes of address space that a worker may have
READY = b"ready\n"


def main(control: socket.socket) -> None:
    """Fork workers until the other end of the socket is closed; then they all die."""
    warm()
    control.sendall(READY)
    workers: dict[bytes, int] = {}
    try:
        while True:
            number, descriptors, _, _ = socket.recv_fds(control, 1, 1)
            if not number:
                return
            _kill(workers.pop(number, None))
            pid = os.fork()
            if pid == 0:
                die_with_parent()
                control.close()
                _serve(socket.socket(fileno=descriptors[0]))
            workers[number] = pid
            os.close(descriptors[0])
    finally:
        for pid in workers.values():
            _kill(pid)


def _kill(pid: int | None) -> None:
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _serve(requests: socket.socket) -> None:
    """Answer requests until the other end is closed; never returns."""
    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        with requests.makefile("rwb") as lines:
            for line in lines:
                rule, given, gold = json.loads(line)
                lines.write(_compare(rule, given, gold).encode() + b"\n")
                lines.flush()
        status = 0
    finally:
        os._exit(status)  # nothing of the process it was forked from may run on


def _compare(rule: str, given: str, gold: str) -> Outcome:
    try:
        return RULES[rule](given, gold)
    except MemoryError:
        return Outcome.TIMEOUT


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main(socket.socket(fileno=int(sys.argv[1])))
