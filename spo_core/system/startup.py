"""What a command does in its first seconds, while it imports: an interrupt or wrong settings end it with one line, and
no garbage is collected, which would take a tenth of the time: there is none."""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType, TracebackType

from pydantic import ValidationError


def begin_quietly() -> None:
    """From now until :func:`begin`, end at an interrupt, or where Prefect's settings are wrong, without a traceback.

    Nothing is under way yet. Imports are no place for an exception: libraries take it for a missing package, or lose
    it in a callback. An interrupt that is ignored, as of a command that a script starts with ``&``, stays so.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupted)
    sys.excepthook = _failed
    gc.disable()


def begin() -> None:
    """Give interrupts and errors back to Python: the command itself begins."""
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.excepthook is _failed:
        sys.excepthook = sys.__excepthook__
    gc.enable()


def _interrupted(number: int, frame: FrameType | None) -> None:
    _leave("interrupted", 130)


def _failed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, ValidationError) and error.title.endswith("Settings"):
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        _leave(f"error: Prefect's settings (PREFECT_... variables, prefect.toml): {key or 'one'}: {first['msg']}", 2)
    sys.__excepthook__(kind, error, trace)


def _leave(message: str, status: int) -> None:
    print(message, file=sys.stderr, flush=True)
    os._exit(status)
