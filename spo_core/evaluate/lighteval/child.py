"""lighteval's process: ``python -m spo_core.evaluate.lighteval.child PARENT DESCRIPTOR``.

Runs in lighteval's environment, with the project on PYTHONPATH, and ends with the process ``PARENT``. It imports what
lighteval needs, once, which takes longest, and forks a process for each evaluation that connects to the listening
socket of that descriptor. The project's own modules are imported after the fork: an evaluation is one of the code as it
is then. What it exchanges with an evaluation's asker stands in ``process``.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from spo_core.system.processes import die_with, die_with_parent

LIBRARIES = (
    "lighteval.metrics.dynamic_metrics",
    "lighteval.models.transformers.transformers_model",
    "lighteval.pipeline",
    "transformers.models.auto.modeling_auto",
    "transformers.generation",
)
PATH_BYTES = 4096  # most of a path
EVERY_SECONDS = 0.05


def main(parent: int, descriptor: int) -> None:
    die_with(parent)
    listener = socket.socket(fileno=descriptor)
    gc.disable()  # collecting while 6000 modules load would take a tenth of the time
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that keep an evaluation
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _never_return(_keep, connection)
        connection.close()


def _keep(connection: socket.socket) -> None:
    """Fork the evaluation that is asked for, tell its process id and then its exit status; kill it and what it forked
    where nobody waits for it any more."""
    die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    scratch, (log, metric), _, _ = socket.recv_fds(connection, PATH_BYTES, 2)
    pid = os.fork()
    if pid == 0:
        connection.close()
        _never_return(_evaluate, Path(os.fsdecode(scratch)), log, metric)
    for closed in (log, metric):
        os.close(closed)
    with suppress(OSError):  # as the evaluation does, whichever is first
        os.setpgid(pid, pid)
    ended = status = 0
    try:
        connection.sendall(b"%d\n" % pid)
        while not ended and not select.select([connection], [], [], EVERY_SECONDS)[0]:
            ended, status = os.waitpid(pid, os.WNOHANG)
    finally:
        if not ended:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    if ended:  # what serves the metric stays until its own socket is closed
        connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _evaluate(scratch: Path, log: int, metric: int) -> None:
    """Evaluate in the scratch folder, and serve lighteval's metric at the socket ``metric`` by a fork of its own."""
    die_with_parent()
    os.setpgid(0, 0)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    os.chdir(scratch)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    from spo_core.evaluate.lighteval import exchange, extractive_match
    from spo_core.evaluate.lighteval.pipeline import evaluate
    from spo_core.policy.positions import positions_of

    exchange.write_positions(scratch, positions_of)
    if os.fork() == 0:  # before torch has threads
        extractive_match.serve_metric(metric)
    os.close(metric)
    answers, report = evaluate(exchange.Request.read(scratch), scratch)
    exchange.write_answers(scratch, answers)
    exchange.write_report(scratch, report)
    logging.getLogger("spo_core.evaluate").info("done")
    logging.shutdown()


def _never_return(work: Callable[..., None], *arguments: Any) -> NoReturn:
    """Do what a forked process is for, and end it: at once, as unloading all that was imported takes seconds."""
    status = 1
    try:
        work(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
