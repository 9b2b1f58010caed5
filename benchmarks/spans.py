"""Measures seconds and peak memory by step, by wrapping functions of the product; a step's time is its own alone."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

EVERY = 0.005  # seconds between readings of the memory


def resident_bytes() -> int:
    """Resident memory of this process now, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Spans:
    """Times nested steps, as a context manager that also watches the memory.

    ``seconds`` and ``cpu_seconds`` (of all threads) are of each step without the steps inside it, ``peak_bytes`` the
    largest resident memory while it was the innermost one.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.cpu_seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.peak_bytes: dict[str, int] = defaultdict(int)
        self._open = ["other"]
        self._since = (time.perf_counter(), time.process_time())
        self._put_back: list[tuple[Any, str, Any]] = []
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Spans:
        self._watch.start()
        self._since = (time.perf_counter(), time.process_time())
        return self

    def __exit__(self, *_: object) -> None:
        self._account()
        self._ended.set()
        self._watch.join()
        for owner, name, function in reversed(self._put_back):
            setattr(owner, name, function)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self._account()
        self._open.append(name)
        self.calls[name] += 1
        try:
            yield
        finally:
            self._account()
            self._open.pop()

    def timed(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*arguments: Any, **more: Any) -> Any:
            with self.step(step):
                return function(*arguments, **more)

        return call

    def wrap(self, step: str, owner: Any, *names: str) -> None:
        """Time the functions of ``owner`` with these names as ``step``, until the context ends."""
        for name in names:
            self.replace(owner, name, self.timed(step, getattr(owner, name)))

    def replace(self, owner: Any, name: str, function: Callable[..., Any]) -> None:
        """Replace a function of ``owner`` until the context ends."""
        self._put_back.append((owner, name, getattr(owner, name)))
        setattr(owner, name, function)

    def add(self, step: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere to a step."""
        self.seconds[step] += seconds

    def _account(self) -> None:
        now = (time.perf_counter(), time.process_time())
        self.seconds[self._open[-1]] += now[0] - self._since[0]
        self.cpu_seconds[self._open[-1]] += now[1] - self._since[1]
        self._since = now

    def _look(self) -> None:
        while not self._ended.wait(EVERY):
            name = self._open[-1]
            self.peak_bytes[name] = max(self.peak_bytes[name], resident_bytes())
