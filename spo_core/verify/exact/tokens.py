r"""Splits an expression in normalised LaTeX into tokens, or at separators, and reads the exact values of numbers."""

from __future__ import annotations

import re
from fractions import Fraction

from spo_core.verify.exact.wrappers import CLOSING, OPENING

_WORD = 4  # letters in a row that are a word, not a product, unless _PRODUCT matches them
_WORDS = frozenset(["and", "or", "not", "nor", "but", "is", "no", "if", "the", "for", "one", "two", "six", "ten"])
_PRODUCT = re.compile(r"(?!.*(.).*\1)(?:[abcdxyz]+|[bcdk-np-tv-z]+)")

_REPEATING = r"(?:\d*\.\d*\\(?:overline|bar|dot)\{\d+\})"
_SCIENTIFIC = r"(?:(?:\d+(?:\.\d+)?|\.\d+)[eE][-+]?\d{1,3}(?![\w.]))"
_MIXED = r"(?:\d+(?: ?\\frac\{\d+\}\{\d+\}| \d+/\d+(?![\d!]))(?!\^))"
_TOKEN = re.compile(
    rf"(?P<number>{_REPEATING}|{_SCIENTIFIC}|{_MIXED}|\d+\.$|\d+(?:\.\d+)?|\.\d+)|\^\\circ|\\[a-zA-Z]+|\\[|{{}}]|[a-zA-Z]+|[-+/^_!,=()|\[\]{{}}]",
    re.ASCII,
)
_SPLITTER = re.compile(r"\\begin\{[a-z]+\}|\\end\{[a-z]+\}|\\[a-zA-Z]+|\\.|[()\[\]{}]", re.DOTALL)


class Unreadable(Exception):
    """Raised for a text that is not one whole expression, or is one too large to work out."""


def plain_number(text: str) -> Fraction | None:
    """The value of ``text`` if all of it is one number, else None."""
    match = _TOKEN.fullmatch(text)
    return number_of(text) if match and match["number"] else None


def number_of(text: str) -> Fraction | None:
    r"""The value of a number token; None for a product that looks like a mixed number, as ``2\frac{10}{3}``."""
    if "\\frac" in text or "/" in text:
        whole, above, below = (int(part) for part in re.findall(r"\d+", text))
        return whole + Fraction(above, below) if 0 < above < below else None
    if "\\" in text:
        written, fixed, period = re.fullmatch(r"(\d*)\.(\d*)\\[a-z]+\{(\d+)\}", text).groups()  # type: ignore[union-attr]
        shift = 10 ** len(fixed)
        return Fraction(int(written + fixed or "0"), shift) + Fraction(int(period), (10 ** len(period) - 1) * shift)
    mantissa, _, exponent = text.lower().partition("e")
    return Fraction(mantissa.removesuffix(".")) * Fraction(10) ** int(exponent or 0)


def tokenise(text: str) -> list[str]:
    """Tokens of ``text``, spaces left out. Raises Unreadable where some of it is no token, or is a word."""
    tokens: list[str] = []
    position = 0
    while position < len(text):
        if text[position] == " ":
            position += 1
            continue
        match = _TOKEN.match(text, position)
        if not match:
            raise Unreadable(text)
        token = match.group()
        if match["number"] and number_of(token) is None:  # an improper mixed number: a product
            token = re.match(r"\d+", token).group()  # type: ignore[union-attr]
            if text[position + len(token) :].lstrip(" ")[:1].isdigit():
                raise Unreadable(text)
        position += len(token)
        if token.isalpha():
            if token in _WORDS or (len(token) >= _WORD and not _PRODUCT.fullmatch(token)):
                raise Unreadable(text)
            tokens.extend(token)
        else:
            tokens.append(token)
    return tokens


def split(text: str, separator: re.Pattern[str], *, strip: bool = True) -> tuple[list[str], list[str]]:
    """Split ``text`` at separators outside all brackets; returns the parts and the separators between them."""
    if not separator.search(text):
        return [text.strip() if strip else text], []
    parts, between = [], []
    depth = begin = position = 0
    while position < len(text):
        match = separator.match(text, position) if depth == 0 else None
        if match and match.end() > position:
            parts.append(text[begin:position])
            between.append(match.group())
            begin = position = match.end()
            continue
        token = _SPLITTER.match(text, position)
        if not token:
            position += 1
            continue
        word = token.group()
        depth += (word in OPENING or word.startswith(r"\begin")) - (word in CLOSING or word.startswith(r"\end"))
        position = token.end()
    parts.append(text[begin:])
    return [part.strip() for part in parts] if strip else parts, between
