"""The process that forks workers for ``spo_core.verify.pool``, and what a worker does: it compares until it is killed.

The process imports what comparing needs, once, and forks a worker for every number it is sent over its socket, together
with the socket that the worker shall serve; a worker that already has the number is killed first. So a new worker is
warm within milliseconds. multiprocessing is not used: its workers import the main module again, here Prefect and torch,
and forking a process that has threads is unsafe. Requests and answers are lines of JSON; nothing is pickled. Only the
standard library is imported here: the process may run in another environment.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from spo_core.system.processes import die_with_parent

MEMORY = 4 * 2**30  # bytes of address space that a worker may take beyond what it was forked with
READY = b"ready\n"
Compare = Callable[..., str]  # takes a task, as (rule, answer given, gold answer); may take forever, or die


def serve(warm: Callable[[], None], compare: Compare, descriptor: int) -> NoReturn:
    """Fork workers until the socket of that descriptor is closed; then they all die."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=descriptor)
    warm()
    control.sendall(READY)
    workers: dict[bytes, int] = {}
    try:
        while True:
            try:
                number, descriptors, _, _ = socket.recv_fds(control, 1, 1)
            except ConnectionError:  # the process that asked was killed
                break
            if not number:
                break
            _kill(workers.pop(number, None))
            pid = os.fork()
            if pid == 0:
                die_with_parent()
                control.close()
                _answer(socket.socket(fileno=descriptors[0]), compare)
            workers[number] = pid
            os.close(descriptors[0])
    finally:
        for pid in workers.values():
            _kill(pid)
    os._exit(0)  # at once: unloading all that was imported takes seconds


def _address_space() -> int:
    """Bytes that this process has mapped."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _kill(pid: int | None) -> None:
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _answer(requests: socket.socket, compare: Compare) -> None:
    """Answer requests until the other end is closed; never returns. An error ends the worker: a timeout to the pool."""
    status = 1
    try:
        most = _address_space() + MEMORY  # CUDA builds of torch map more than that before they do anything
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        with requests.makefile("rwb") as lines:
            for line in lines:
                lines.write(compare(*json.loads(line)).encode() + b"\n")
                lines.flush()
        status = 0
    except ConnectionError:
        pass  # nobody waits for the answer
    except BaseException:
        traceback.print_exc()  # os._exit would swallow it
    finally:
        os._exit(status)  # nothing of the process it was forked from may run on
