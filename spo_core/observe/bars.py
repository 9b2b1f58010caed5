"""Progress bars on standard error; in a log file an occasional line, and none for work that ends quickly."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def bar(description: str, total: int | None, *, unit: str, inner: bool = False) -> Iterator[tqdm]:
    """Show a progress bar; ``inner`` ones stand below another and vanish when done."""
    terminal = sys.stderr.isatty()
    with tqdm(
        total=total,
        desc=f"{description:>10}",
        unit=unit,
        leave=not inner,
        position=1 if inner else 0,
        disable=inner and not terminal,
        dynamic_ncols=True,
        mininterval=0.2 if terminal else 20.0,
    ) as progress:
        yield progress
