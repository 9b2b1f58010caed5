"""Progress on a terminal; silent where standard error is not one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def bar(description: str, total: int | None, *, unit: str, inner: bool = False) -> Iterator[tqdm]:
    """One bar; ``inner`` ones stand below another and vanish when done."""
    with tqdm(
        total=total,
        desc=f"{description:>10}",
        unit=unit,
        leave=not inner,
        position=1 if inner else 0,
        disable=None,
        dynamic_ncols=True,
        mininterval=0.2,
    ) as progress:
        yield progress
