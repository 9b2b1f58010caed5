"""Numbers and words as pages show them."""

from __future__ import annotations

import json
import math
import unicodedata
from functools import lru_cache
from typing import Any, TypeGuard

NOT_MEASURED = "\N{EN DASH}"
MOST_CHARACTERS = 60
_VISIBLE = {"\n": "⏎", "\r": "␍", "\t": "⇥"}


def known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def number(value: float | None, places: int = 3) -> str:
    """Format a number: rounded, with thousands apart; a dash for what was not measured."""
    if not known(value):
        return NOT_MEASURED
    return f"{value:,.{places}f}".replace(",", "\N{NARROW NO-BREAK SPACE}").replace("-", "\N{MINUS SIGN}")


def signed(value: float | None, places: int = 3) -> str:
    """Format a number with its sign; what rounds to zero has no sign."""
    if not known(value):
        return NOT_MEASURED
    text = number(abs(value), places)
    return text if float(f"{value:.{places}f}") == 0 else ("+" if value > 0 else "\N{MINUS SIGN}") + text


def probability(value: float | None) -> str:
    """Format a probability with three decimals, or as less than 0.001."""
    return "< 0.001" if known(value) and value < 0.0005 else number(value)


def counted(count: int, noun: str) -> str:
    return f"{number(count, 0)} {noun}{'' if count == 1 else 's'}"


def plain(value: Any) -> str:
    """Format a param as its file has it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def one_line(text: str | None) -> str:
    """Put others' text on one line: cut short, with characters that do not print shown as a sign or as U+FFFD."""
    if text is None:
        return NOT_MEASURED
    cut = text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
    return "".join(c if c.isprintable() else _VISIBLE.get(c, "\N{REPLACEMENT CHARACTER}") for c in cut)


def visible(text: str | None) -> str:
    """Show others' text as text: what a terminal or a browser would obey (control characters, bidirectional overrides)
    and what nobody would see becomes a sign or its number. Line breaks and tabs stay."""
    if text is None:
        return NOT_MEASURED
    return text if text.isascii() and text.isprintable() else "".join(map(_shown, text))


@lru_cache(maxsize=4096)
def _shown(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or unicodedata.category(character) not in _OBEYED or code in _JOINERS:
        return character
    if code < 0x20:
        return chr(0x2400 + code)  # the sign of a control character
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else f"⟨U+{code:04X}⟩"


_OBEYED = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format, lone surrogates, separators of lines and paragraphs
_JOINERS = (0x200C, 0x200D)  # letters of Persian and Hindi, and emoji, need them

FILTERS = {f.__name__: f for f in (number, signed, probability, plain, counted, one_line, visible)}
