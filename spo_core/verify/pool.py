"""A pool of worker processes, each of which is killed when one answer takes it too long."""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from spo_core.errors import GradingError
from spo_core.verify.fork_server import READY
from spo_core.verify.outcome import Outcome

Task = tuple[str, str, str]  # (rule, answer given, gold answer)
ANSWER = 8192  # most bytes of an answer
START_SECONDS = 300.0  # for importing on a busy machine


class WorkerPool:
    """Workers that compare; they start with the first comparison, or with ``begin``. A worker that dies is replaced,
    and what it was comparing is a timeout.

    ``module`` is run by the process that forks the workers (``spo_core.verify.fork_server``). Where ``served`` is
    given, a process started elsewhere forks them, at the other end of that socket, and no second one follows it.
    """

    def __init__(
        self,
        workers: int,
        seconds: float,
        module: str = "spo_core.verify.comparison_worker",
        *,
        arguments: Sequence[str] = (),
        served: socket.socket | None = None,
    ) -> None:
        self.arguments = tuple(arguments)  # of the module, after the socket's descriptor
        self.workers, self.seconds, self.module = workers, seconds, module
        self._process: subprocess.Popen[bytes] | None = None
        self._control = self._served = served
        self._lines: list[socket.socket] = []  # one socket a worker

    def compare(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Outcome of each task, in order; see ``answers``."""
        return [Outcome.TIMEOUT if found is None else Outcome(found) for found in self.answers(tasks)]

    def answers(self, tasks: Sequence[Sequence[Any]]) -> list[str | None]:
        """Have workers answer tasks (JSON-like, in one line of at most ANSWER bytes); the answers in order, None where
        a worker took too long or died. Takes at most ``seconds`` for each, whatever it holds.

        Raises GradingError where workers cannot be started. Whatever interrupts it ends the workers, so that no answer
        of theirs is taken for one to a later task.
        """
        if not tasks:
            return []
        try:
            self._start()
            return self._ask(tasks)
        except BaseException:
            self.close()
            raise

    def _ask(self, tasks: Sequence[Sequence[Any]]) -> list[str | None]:
        waiting = deque(enumerate(tasks))
        answers: list[str | None] = [None] * len(tasks)
        busy: dict[int, tuple[int, float]] = {}  # worker -> its task, when its time is over
        idle = deque(range(self.workers))
        with selectors.DefaultSelector() as selector:
            for worker, line in enumerate(self._lines):
                selector.register(line, selectors.EVENT_READ, worker)
            for key, _ in selector.select(0):  # sockets of workers that died meanwhile
                self._replace(key.data, selector)
            while waiting or busy:
                while waiting and idle:
                    worker, (index, task) = idle.popleft(), waiting.popleft()
                    busy[worker] = index, time.monotonic() + self.seconds
                    self._send(worker, task)
                first = min(deadline for _, deadline in busy.values())
                answered = {key.data for key, _ in selector.select(max(0.0, first - time.monotonic()))}
                late = {worker for worker, (_, deadline) in busy.items() if deadline <= time.monotonic()}
                for worker in sorted(answered | late):
                    answer = self._receive(worker) if worker in answered else None
                    if answer is None:
                        self._replace(worker, selector)
                    if worker in busy:  # otherwise it died idle
                        index, _ = busy.pop(worker)
                        answers[index] = answer
                        idle.append(worker)
        return answers

    def close(self) -> None:
        """End all workers; a later comparison starts new ones."""
        served, self._lines = self._lines, []
        for line in served:
            line.close()
        if self._control is not None:
            self._control.close()  # at this the process kills its workers and ends
            self._control = None
        if self._process is None:
            return
        if not served:  # it has no workers yet, and may still be importing
            self._process.kill()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def begin(self) -> None:
        """Start the process that forks the workers and do not wait for it; nothing where it runs."""
        if self._served is not None or (self._process is not None and self._process.poll() is None):
            return
        self.close()
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.module, str(theirs.fileno()), *self.arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # an interrupt from the keyboard must not reach the workers
                env={**os.environ, "PYTHONHASHSEED": "0"},  # same verdicts
            )

    def _start(self) -> None:
        self.begin()
        if self._lines:
            return
        ready = b""
        if self._control is not None:
            self._control.settimeout(START_SECONDS)
            with suppress(OSError):  # as a timeout
                ready = self._control.recv(len(READY))
        if ready != READY:
            words = "above" if self._served is None else "in the log of the process that forks them"
            raise GradingError(f"the workers that compare answers did not start; see their words {words}")
        assert self._control is not None
        self._control.settimeout(None)
        self._lines = [self._worker(number) for number in range(self.workers)]

    def _worker(self, number: int) -> socket.socket:
        """Have worker ``number`` forked, in place of a present one; returns the socket that it serves."""
        assert self._control is not None
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [bytes([number])], [theirs.fileno()])
            except OSError as error:
                ours.close()
                raise GradingError(f"the process that starts workers to compare answers is gone: {error}") from None
        return ours

    def _replace(self, worker: int, selector: selectors.BaseSelector) -> None:
        selector.unregister(self._lines[worker])
        self._lines[worker].close()
        self._lines[worker] = self._worker(worker)
        selector.register(self._lines[worker], selectors.EVENT_READ, worker)

    def _send(self, worker: int, task: Sequence[Any]) -> None:
        with suppress(OSError):  # a dead worker is found when its socket is read
            self._lines[worker].sendall(json.dumps(task).encode() + b"\n")

    def _receive(self, worker: int) -> str | None:
        """Read a worker's answer; None where it died."""
        try:
            words = self._lines[worker].recv(ANSWER)
        except OSError:
            return None
        return words.decode().strip() if words.endswith(b"\n") else None
