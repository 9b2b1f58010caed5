"""lighteval's process of one evaluation, from this side."""

from __future__ import annotations

import os
import shutil
import socket
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from spo_core.evaluate.lighteval import exchange
from spo_core.evaluate.lighteval.environment import child_environment
from spo_core.evaluate.lighteval.exchange import Answers, Report, Request
from spo_core.evaluate.result import EvaluationError
from spo_core.system.processes import child, last_words, wait
from spo_core.system.progress import Progress

LOG = "lighteval.log"


class Lighteval:
    """lighteval's process, in a fresh scratch folder below ``work_dir``, while the context lasts. It begins to import
    at once, which takes longer than anything until there is a request; then it forks what serves its metric at the
    other end of ``metric``."""

    def __init__(self, checkpoint: Path, threads: int, python: Path, work_dir: Path) -> None:
        self.threads, self.work_dir = threads, work_dir
        self._checkpoint, self._python = checkpoint, python
        self._scratch, self._log = work_dir / "scratch", work_dir / LOG

    def __enter__(self) -> Self:
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        (self._scratch / exchange.POLICY).symlink_to(self._checkpoint.resolve())
        command = [os.path.abspath(self._python), "-m", "spo_core.evaluate.lighteval.child"]
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, self._scratch, ignore_errors=True)
            self.metric, theirs = socket.socketpair()
            stack.callback(self.metric.close)
            with theirs:
                descriptor = theirs.fileno()
                command += [str(self._scratch), str(os.getpid()), str(descriptor)]
                environment = child_environment(self._scratch, self.threads)
                self._process = stack.enter_context(
                    child(command, cwd=self._scratch, env=environment, log=self._log, pass_fds=[descriptor])
                )
            self._stack = stack.pop_all()
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, request: Request, prompts: dict[str, str], progress: Progress | None) -> tuple[list[Answers], Report]:
        """Have it sample; returns its answers and its report."""
        total = len(prompts) * request.samples

        def tick() -> None:
            if progress:
                progress(exchange.read_progress(self._scratch), total)

        request.write(self._scratch, prompts)
        status = wait(self._process, tick)
        if status != 0:
            raise EvaluationError(f"lighteval failed: {last_words(self._log, status)} (see {self._log})")
        tick()
        return exchange.read_answers(self._scratch), exchange.read_report(self._scratch)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._stack.close()
