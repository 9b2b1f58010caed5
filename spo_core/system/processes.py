"""Child processes in a process group of their own, killed on every way out and when their parent dies."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b.*$")


@contextmanager
def child(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path, pass_fds: Collection[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command, both of its outputs in ``log``; its whole process group is killed when the block is left."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def die_with_parent() -> None:
    """Ask Linux to kill this process when the thread of the parent that started it ends; an exec keeps the wish."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def die_with(parent: int) -> None:
    """Die with the parent, at once where it is already gone; a child calls this first of all."""
    die_with_parent()
    if os.getppid() != parent:
        raise SystemExit("the process that asked for this is gone")


def keep_alive(connection: socket.socket) -> None:
    """Have TCP notice within about a minute that the other machine is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # macOS lacks some of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def last_words(log: Path, status: int) -> str:
    """Say in one line why a child failed: its last exception, else its last line, else its exit status."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    ending = f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    if status < 0 or not lines:
        return ending
    return next((line for line in reversed(lines) if EXCEPTION.match(line)), lines[-1])
