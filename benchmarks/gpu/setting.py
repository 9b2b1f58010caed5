"""Shared by the parts: device and size, a clock that waits for the device, the device's peak, a part's result."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

# dense bfloat16 from NVIDIA's data sheets, in 1e12 operations a second; a card has the first name that its own contains
PEAKS = {
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H200": 989,
    "B200": 2250,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
}
SIDE = 8192  # side of the matrices that measure a card which is not in the table


@dataclass(frozen=True, slots=True)
class Setting:
    """How a part measures. ``small`` is for tests: seconds on a CPU, and its numbers mean nothing. ``deadline`` is the
    value of ``time.monotonic`` after which nothing is repeated."""

    device: torch.device
    small: bool
    deadline: float

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds that the work takes, until the device is done with it."""
        self.wait()
        started = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - started

    def repeated(self, work: Callable[[], object], most: int) -> tuple[float, float, int]:
        """Seconds of the first run, which compiles and warms up; median of the later runs; and their number, 1 to
        ``most``: none is begun where less time is left than the last one took."""
        first = self.seconds(work)
        times = [self.seconds(work)]
        while len(times) < most and self.left > times[-1]:
            times.append(self.seconds(work))
        return first, statistics.median(times), len(times)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def forget_peak(self) -> None:
        """Begin to measure ``peak_memory`` anew."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    @property
    def peak_memory(self) -> int | None:
        """Most bytes that tensors had at once; None on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None


@dataclass(frozen=True, slots=True)
class Result:
    """A part's result: the table to print, the content to write, and what is wrong, if anything is."""

    table: Table
    content: dict[str, Any]
    wrong: str | None = None


def table(title: str, *columns: str) -> Table:
    """An empty table whose first column is text and whose others are numbers."""
    made = Table(title=title)
    for place, column in enumerate(columns):
        made.add_column(column, justify="right" if place else "left")
    return made


def peak_operations(setting: Setting) -> tuple[float, str]:
    """Peak bfloat16 operations a second of the device, and the number's source."""
    if setting.device.type == "cuda":
        name = torch.cuda.get_device_name(setting.device)
        for known, peak in PEAKS.items():
            if known in name:
                return peak * 1e12, f"data sheet of {known}, dense bfloat16"
    side = 256 if setting.small else SIDE
    a = torch.randn(side, side, device=setting.device, dtype=torch.bfloat16)
    setting.seconds(lambda: a @ a)
    fastest = min(setting.seconds(lambda: a @ a) for _ in range(5))
    return 2 * side**3 / fastest, f"measured: the best of 5 products of {side} x {side} matrices in bfloat16"
