"""Starts, commands, watches and ends the processes of a DeepSpeed training, from the flow's process."""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import selectors
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from spo_core import errors
from spo_core.config import DeepSpeedBackendParams
from spo_core.errors import ConfigError, SPOError, TrainingError
from spo_core.learn.deepspeed.hostfile import addresses, free_port, read_hostfile
from spo_core.learn.deepspeed.launch import (
    environment,
    launch_here,
    launch_on_hosts,
    launcher_environment,
    rank_environment,
    visible_devices,
)
from spo_core.system.processes import child, keep_alive, last_words
from spo_core.system.progress import Progress

log = logging.getLogger(__name__)
GRACE = 5.0  # seconds in which the launcher ends once a rank is gone
CONNECT = 600.0  # seconds in which ranks on other machines must have begun


class Ranks:
    """Workers under DeepSpeed's launcher, on this machine or on those of a hostfile.

    ``folder`` is private and seen by all machines; it holds settings and exchanged files. ``log`` gets the output of
    all. Ranks on this machine connect to a unix socket in a temporary folder, because some file systems have no sockets
    and their paths must be short; on other machines by TCP, showing a token that they read in ``folder``.
    """

    def __init__(
        self, settings: Mapping[str, Any], backend: DeepSpeedBackendParams, *, folder: Path, log: Path
    ) -> None:
        self._ranks, self._log, self._gone = backend.ranks, log, 0.0
        self._stack = ExitStack()
        self._buffers: dict[socket.socket, bytes] = {}
        self._strangers: dict[socket.socket, bytes] = {}  # connections that have not shown the token yet
        self._token, self._deadline = "", float("inf")
        try:
            self._selector = self._stack.enter_context(selectors.DefaultSelector())
            config = folder / "settings.json"
            if backend.hostfile is None:
                command, env, more = self._here(folder, config)
            else:
                command, env, more = self._on_hosts(Path(backend.hostfile).resolve(), config)
            self._listener.listen(self._ranks)
            self._selector.register(self._listener, selectors.EVENT_READ)
            config.touch(mode=0o600)
            config.write_text(json.dumps(dict(settings) | more), encoding="utf-8")
            self._process = self._stack.enter_context(child(command, cwd=folder, env=env, log=log))
        except BaseException:
            self.close()
            raise

    def _here(self, folder: Path, config: Path) -> tuple[list[str], dict[str, str], dict[str, Any]]:
        """Listen for ranks on this machine; returns the launcher's command, its environment and further settings."""
        local = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="spo-ranks-")))
        self._listener = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        path = local / "socket"
        try:
            self._listener.bind(str(path))
        except OSError as error:
            raise ConfigError(f"{path}: no socket here ({error}); set TMPDIR to a shorter path") from None
        command = launch_here(self._ranks, folder / "no-hosts", config)
        more = {"socket": str(path), "store": str(local / "store"), "environment": visible_devices()}
        return command, environment(self._ranks), more

    def _on_hosts(self, hostfile: Path, config: Path) -> tuple[list[str], dict[str, str], dict[str, Any]]:
        """Do what ``_here`` does, for ranks on the machines of a hostfile."""
        hosts = read_hostfile(hostfile, self._ranks)
        if shutil.which("pdsh") is None:
            raise ConfigError("learn.backend.hostfile needs pdsh here, and ssh to its machines without a password")
        ours, first = addresses(list(hosts))
        family = socket.AF_INET6 if ":" in ours else socket.AF_INET
        self._listener = self._stack.enter_context(socket.socket(family))
        self._listener.bind((ours, 0))
        self._token, self._deadline = secrets.token_hex(32), time.monotonic() + CONNECT
        command = launch_on_hosts(hosts, hostfile, config, (first, free_port(ours)))
        more = {
            "address": [ours, self._listener.getsockname()[1]],
            "token": self._token,
            "environment": rank_environment(max(hosts.values())),
        }
        return command, launcher_environment(), more

    def ask(self, command: Mapping[str, Any] | None = None, progress: Progress | None = None) -> dict[str, Any]:
        """Send a command to all ranks and wait for all; returns rank 0's answer. Without a command, wait until all are
        ready.

        Raises the SPOError that a rank raised, TrainingError for any other error and for a process that ended; all
        ranks are ended then.
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
        """End all ranks."""
        for rank in [*self._buffers, *self._strangers]:
            rank.close()
        self._buffers, self._strangers = {}, {}
        self._stack.close()

    def _messages(self) -> list[dict[str, Any]]:
        """Messages that came within 0.2 s. Raises TrainingError where a process ended or has not connected in time."""
        messages = []
        for key, _ in self._selector.select(timeout=0.2):
            if key.fileobj is self._listener:
                self._accept()
                continue
            assert isinstance(key.fileobj, socket.socket)
            rank = key.fileobj
            try:
                data = rank.recv(1 << 16)
            except OSError:
                data = b""
            if rank in self._strangers:
                self._greet(rank, data, key.data)
                continue
            if not data:
                self._selector.unregister(rank)
                self._gone = self._gone or time.monotonic()
            *lines, self._buffers[rank] = (self._buffers[rank] + data).split(b"\n")
            messages += [json.loads(line) for line in lines]
        if len(self._buffers) < self._ranks and time.monotonic() > self._deadline:
            raise TrainingError(
                f"{len(self._buffers)} of {self._ranks} ranks answered within {CONNECT:.0f} s; can ssh reach every "
                f"machine, and they this one? (see {self._log})"
            )
        over = self._process.poll() is not None or (self._gone and time.monotonic() - self._gone > GRACE)
        if over and not messages:
            raise TrainingError(f"a training process ended: {self._last_words()}")
        return messages

    def _accept(self) -> None:
        rank, address = self._listener.accept()
        self._selector.register(rank, selectors.EVENT_READ, address)  # a closed connection could not tell its address
        if self._token:
            keep_alive(rank)
            self._strangers[rank] = b""
        else:
            self._buffers[rank] = b""

    def _greet(self, stranger: socket.socket, data: bytes, address: tuple[Any, ...]) -> None:
        """Admit a connection whose first line is the token; close any other."""
        said, complete, rest = (self._strangers.pop(stranger) + data).partition(b"\n")
        if data and not complete and len(said) <= len(self._token):
            self._strangers[stranger] = said
        elif complete and hmac.compare_digest(said, self._token.encode()):
            self._buffers[stranger] = rest  # empty in practice: a rank sends nothing before it is ready
        else:
            log.warning("%s connected without the ranks' token and was sent away", address)
            self._selector.unregister(stranger)
            stranger.close()

    def _failure(self, rank: int, kind: str, text: str) -> SPOError:
        known = getattr(errors, kind, None)
        if isinstance(known, type) and issubclass(known, SPOError):
            return known(text)
        return TrainingError(f"rank {rank} failed: {kind}: {text} (see {self._log})")

    def _last_words(self) -> str:
        status = self._process.poll()
        return f"{last_words(self._log, 1 if status is None else status)} (see {self._log})"
