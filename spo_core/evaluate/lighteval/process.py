"""lighteval's process, from this side: it imports lighteval once, and forks a process for each evaluation."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Self

from spo_core.evaluate.lighteval import exchange
from spo_core.evaluate.lighteval.environment import PROJECT, child_environment
from spo_core.evaluate.lighteval.exchange import Answers, Report, Request
from spo_core.evaluate.result import EvaluationError
from spo_core.system.processes import child, last_words
from spo_core.system.progress import Progress

LOG = "lighteval.log"
SHARED = "SPO_LIGHTEVAL"  # names, in the environment, the folder of a process that evaluations share
LONGEST = 70  # bytes of a path in which the process's folder is made
KILL_SECONDS = 10.0
TICK_SECONDS = 0.1


@contextmanager
def lighteval_started(python: Path, first: socket.socket | None = None) -> Iterator[Path]:
    """Run lighteval's process while the context lasts; yields its folder. ``python`` is the interpreter of lighteval's
    environment. It begins to import at once, and nobody who connects has to wait for that; ``first`` is connected
    before, so that it is even if the process dies at once."""
    with (
        tempfile.TemporaryDirectory(prefix="spo-", dir=_short(), ignore_cleanup_errors=True) as name,  # mode 0700
        socket.socket(socket.AF_UNIX) as listener,
    ):
        folder = Path(name)
        listener.bind(str(_address(folder, python)))
        listener.listen()
        if first is not None:
            first.connect(str(_address(folder, python)))
        descriptor = listener.fileno()
        command = [os.path.abspath(python), "-m", "spo_core.evaluate.lighteval.child", str(os.getpid())]
        with child(
            [*command, str(descriptor)],
            cwd=folder,
            env=child_environment(folder),
            log=folder / LOG,
            pass_fds=[descriptor],
        ):
            listener.close()  # nobody shall wait for a process that has died
            yield folder


@contextmanager
def lighteval_shared(python: Path) -> Iterator[None]:
    """Have all evaluations here, and of commands that are started here, fork from one process: its imports take longer
    than a small policy."""
    with ExitStack() as stack:
        if SHARED not in os.environ:
            os.environ[SHARED] = str(stack.enter_context(lighteval_started(python)))
            stack.callback(os.environ.pop, SHARED)
        yield


def _short() -> str | None:
    """Where a folder has room for a socket, whose path may have a hundred characters; None is where TMPDIR says."""
    return "/tmp" if len(os.fsencode(tempfile.gettempdir())) > LONGEST else None


def _address(folder: Path, python: Path) -> Path:
    """The socket of a process with that interpreter and this project; nobody connects to another by mistake."""
    return folder / sha256(f"{os.path.abspath(python)}\0{PROJECT}".encode()).hexdigest()[:16]


class Lighteval:
    """An evaluation by lighteval, in a fresh scratch folder below ``work_dir``, while the context lasts. It runs in a
    process that is forked at once by that which ``SHARED`` names, or else by one of its own; forks what serves its
    metric at the other end of ``metric``; and waits for a request."""

    def __init__(self, checkpoint: Path, python: Path, work_dir: Path) -> None:
        self.work_dir = work_dir
        self._checkpoint, self._python = checkpoint, python
        self._scratch, self._log = work_dir / "scratch", work_dir / LOG
        self._said = b""

    def __enter__(self) -> Self:
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        (self._scratch / exchange.POLICY).symlink_to(self._checkpoint.resolve())
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, self._scratch, ignore_errors=True)
            self._folder = Path(os.environ.get(SHARED, os.devnull))
            self._connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            try:
                self._connection.connect(str(_address(self._folder, self._python)))
            except OSError:  # none is shared, or it is gone, or another's
                self._folder = stack.enter_context(lighteval_started(self._python, self._connection))
            stack.callback(self._kill)
            self.metric, theirs = socket.socketpair()
            stack.callback(self.metric.close)
            with theirs, self._log.open("wb") as log, suppress(OSError):  # whoever waits for one that died is told
                request = [os.fsencode(self._scratch)]
                socket.send_fds(self._connection, request, [log.fileno(), theirs.fileno()])
            self._stack = stack.pop_all()
        return self

    @property
    def pid(self) -> int:
        """Id of the evaluation's process, and of the group of all that it forks; waits until it is forked."""
        return self._told(1)[0]

    def positions(self) -> int | None:
        """Number of positions that the policy has, None without a limit. Raises DataError where the policy cannot be
        loaded, and EvaluationError where lighteval fails or dies."""
        told = self._told(2, (self._scratch / exchange.POSITIONS).is_file)
        if not (self._scratch / exchange.POSITIONS).is_file():
            raise self._failure(told)
        return exchange.read_positions(self._scratch)

    def run(self, request: Request, prompts: dict[str, str], progress: Progress | None) -> tuple[list[Answers], Report]:
        """Have it sample; returns its answers and its report. Raises EvaluationError where it fails or dies."""
        total = len(prompts) * request.samples

        def tick() -> None:
            if progress:
                progress(exchange.read_progress(self._scratch), total)

        request.write(self._scratch, prompts)
        told = self._told(2, tick)
        if told[1:] != [0]:
            raise self._failure(told)
        tick()
        return exchange.read_answers(self._scratch), exchange.read_report(self._scratch)

    def _told(self, count: int, enough: Callable[[], bool | None] = lambda: None) -> list[int]:
        """Wait for numbers that are told, the process's id and then its exit status, until there are ``count``,
        ``enough`` is true, or what forked it has died."""
        self._connection.settimeout(TICK_SECONDS)
        while self._said.count(b"\n") < count and not enough():
            try:
                words = self._connection.recv(64)
            except TimeoutError:
                continue
            except ConnectionError:
                break
            if not words:
                break
            self._said += words
        return [int(line) for line in self._said.splitlines()]

    def _failure(self, told: list[int]) -> EvaluationError:
        if not told:  # what was to fork it has died
            with suppress(OSError):
                shutil.copyfile(self._folder / LOG, self._log)
        words = last_words(self._log, told[1] if told[1:] else 1)
        return EvaluationError(f"lighteval failed: {words} (see {self._log})")

    def _kill(self) -> None:
        """Have the evaluation killed, and wait until it is; where it is not forked yet, it will not be."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
            self._connection.settimeout(KILL_SECONDS if self._said else 0)
            while self._connection.recv(64):
                self._connection.settimeout(KILL_SECONDS)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._stack.close()
