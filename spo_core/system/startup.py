"""What a command does in its first seconds, while it imports, and in its last. First: an interrupt or wrong settings
end it with one line, and no garbage is collected, which would take a tenth of the time: there is none. Last: it is not
taken apart, which takes a second or two with all that was imported."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import signal
import sys
from types import FrameType, TracebackType

from pydantic import ValidationError

_ended: list[int] = []  # exit status of a command that has come to its end


def begin_quietly() -> None:
    """From now until :func:`begin`, end at an interrupt, or where Prefect's settings are wrong, without a traceback.

    Nothing is under way yet. Imports are no place for an exception: libraries take it for a missing package, or lose
    it in a callback. An interrupt that is ignored, as of a command that a script starts with ``&``, stays so.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupted)
    sys.excepthook = _failed
    gc.disable()
    atexit.register(_end)  # the first that is registered runs after all others


def begin() -> None:
    """Give interrupts and errors back to Python: the command itself begins."""
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.excepthook is _failed:
        sys.excepthook = sys.__excepthook__
    gc.enable()


def ends(status: int) -> None:
    """Say that the command has come to its end: what is registered for the exit is still done, and no more."""
    _ended.append(status)


def _end() -> None:
    if _ended:
        logging.shutdown()
        try:
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
        except (OSError, ValueError):  # the interpreter's own end tells of it
            return
        os._exit(_ended[-1])


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
