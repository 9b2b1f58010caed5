"""Reads plain numbers exactly, without a mathematics library, so that grading them costs microseconds."""

from __future__ import annotations

import re
from decimal import Decimal

_NUMBER = re.compile(r"[-+]?(?:(?:[1-9]\d{0,2}(?:,\d{3})+|\d{1,40})(?:\.\d{0,40})?|\.\d{1,40})", re.ASCII)
_LONGEST = 100


def parse_number(text: str) -> Decimal | None:
    """An exact decimal from ``42``, ``-1,234.50``, ``$42``, ``42.``; None where the text is not one number.

    ``0,100`` is none, but a list: no number in groups of thousands begins with 0.
    """
    if len(text) > _LONGEST:
        return None
    stripped = text.strip().removeprefix("\\").removeprefix("$").strip()
    if not _NUMBER.fullmatch(stripped):
        return None
    return Decimal(stripped.replace(",", ""))
