"""The processes of a DeepSpeed training, seen from the flow: started, asked, watched and ended."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from spo_core import errors
from spo_core.errors import ConfigError, SPOError, TrainingError
from spo_core.learn.deepspeed_launch import environment, launch_command
from spo_core.processes import child, last_words

GRACE = 5.0  # seconds in which the launcher ends once a rank is gone


class Ranks:
    """``ranks`` workers under DeepSpeed's launcher. ``folder``: private, holds their socket; ``log``: their outputs."""

    def __init__(self, settings: Mapping[str, Any], ranks: int, *, folder: Path, log: Path) -> None:
        self._ranks, self._log, self._gone = ranks, log, 0.0
        self._stack = ExitStack()
        self._buffers: dict[socket.socket, bytes] = {}
        try:
            self._selector = self._stack.enter_context(selectors.DefaultSelector())
            self._listener = self._stack.enter_context(socket.socket(socket.AF_UNIX))
            path = folder / "socket"
            try:
                self._listener.bind(str(path))
            except OSError as error:
                raise ConfigError(f"{path}: no socket here ({error}); set TMPDIR to a shorter path") from None
            self._listener.listen(ranks)
            self._selector.register(self._listener, selectors.EVENT_READ)
            config = folder / "settings.json"
            more = {"socket": str(path), "store": str(folder / "store"), "ranks": ranks}
            config.write_text(json.dumps(dict(settings) | more), encoding="utf-8")
            command = launch_command(ranks, folder / "no-hosts", config)
            self._process = self._stack.enter_context(child(command, cwd=folder, env=environment(ranks), log=log))
        except BaseException:
            self.close()
            raise

    def ask(
        self, command: Mapping[str, Any] | None = None, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, Any]:
        """Rank 0's answer to a command, once all are done; without one, once all are ready.

        Raises what a rank raised if that is an SPOError, else TrainingError, also where a process died; all ranks are
        ended then.
        """
        try:
            if command is not None:
                if not self._buffers:
                    raise TrainingError(f"the training processes have ended (see {self._log})")
                for rank in self._buffers:
                    rank.sendall(json.dumps(command).encode() + b"\n")
            answers: dict[int, dict[str, Any]] = {}
            while len(answers) < self._ranks:
                for message in self._messages():
                    if "error" in message:
                        raise self._failure(**message["error"])
                    if "answer" in message:
                        answers[message["rank"]] = message
                    elif progress:
                        progress(*message["progress"])
            return answers[0]
        except ConnectionError:
            words = self._last_words()
            self.close()
            raise TrainingError(f"a training process ended: {words}") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kill whatever runs."""
        for rank in self._buffers:
            rank.close()
        self._buffers = {}
        self._stack.close()

    def _messages(self) -> list[dict[str, Any]]:
        """Whatever came within a moment; raises TrainingError where processes are missing."""
        messages = []
        for key, _ in self._selector.select(timeout=0.2):
            if key.fileobj is self._listener:
                rank, _ = self._listener.accept()
                self._selector.register(rank, selectors.EVENT_READ)
                self._buffers[rank] = b""
                continue
            assert isinstance(key.fileobj, socket.socket)
            rank = key.fileobj
            try:
                data = rank.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                self._selector.unregister(rank)
                self._gone = self._gone or time.monotonic()
            *lines, self._buffers[rank] = (self._buffers[rank] + data).split(b"\n")
            messages += [json.loads(line) for line in lines]
        over = self._process.poll() is not None or (self._gone and time.monotonic() - self._gone > GRACE)
        if over and not messages:
            raise TrainingError(f"a training process ended: {self._last_words()}")
        return messages

    def _failure(self, rank: int, kind: str, text: str) -> SPOError:
        known = getattr(errors, kind, None)
        if isinstance(known, type) and issubclass(known, SPOError):
            return known(text)
        return TrainingError(f"rank {rank} failed: {kind}: {text} (see {self._log})")

    def _last_words(self) -> str:
        status = self._process.poll()
        return f"{last_words(self._log, 1 if status is None else status)} (see {self._log})"
