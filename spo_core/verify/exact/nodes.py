"""The kinds of answer that ``structures.read`` tells apart."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from spo_core.verify.exact.expressions import GREEK, read_expression
from spo_core.verify.exact.quantities import is_product
from spo_core.verify.exact.units import Unit

VARIABLE = rf"(?:[a-zA-Z]|\\(?:{'|'.join(sorted(GREEK))})(?![a-z]))(?:_\{{[^{{}}]*\}})?"
SIMPLE_NAME = re.compile(VARIABLE)


@dataclass(frozen=True, slots=True)
class Words:
    key: str
    sign: str = ""
    """Sign before or over a name of geometry: ``\\angle``."""
    product: Any | None = None
    """Value of two or three letters if they are variables: ``ma``."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One letter: a choice, or a variable."""

    name: str
    value: Any | None
    text: str = ""
    """Text behind the choice: ``5`` in ``(A) 5``."""


@dataclass(frozen=True, slots=True)
class Value:
    value: Any


@dataclass(frozen=True, slots=True)
class Amount:
    value: Any
    unit: Unit | None
    product: Any | None = None
    """Value if the unit is a variable: ``5 m`` may be five times m."""


@dataclass(frozen=True, slots=True)
class Clock:
    hour: int
    minute: int
    half: str


@dataclass(frozen=True, slots=True)
class Based:
    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Residue:
    """A residue class, named by one of its numbers: ``3 mod 5``."""

    value: Fraction
    modulus: Fraction
    unknown: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """``(1,2)``, a tuple or an interval, as the answer that it is compared with tells."""

    left: str
    right: str
    items: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Several:
    items: tuple[Answer, ...]
    ordered: bool


@dataclass(frozen=True, slots=True)
class Equation:
    """``a = b``, or a chain ``a = b = c``."""

    sides: tuple[Answer, ...]
    name: str | None = None
    """The first or last side, where that only names the others, as in ``x = 5``."""
    named: int = 0

    def values(self) -> tuple[Answer, ...]:
        """The sides without the name."""
        if self.name is None:
            return self.sides
        return self.sides[1:] if self.named == 0 else self.sides[:-1]

    def names_a_variable(self) -> bool:
        return self.name is not None and SIMPLE_NAME.fullmatch(self.name) is not None


@dataclass(frozen=True, slots=True)
class Region:
    """A set of real numbers."""

    points: Any
    unknown: str | None = None
    """The variable whose values these are, if it is named."""


@dataclass(frozen=True, slots=True)
class Inequality:
    """An inequality in several unknowns: ``difference`` is positive, or not negative."""

    difference: Any
    strict: bool


@dataclass(frozen=True, slots=True)
class Grid:
    rows: tuple[tuple[Answer, ...], ...]
    unordered: bool = False
    """Rows are cases: values and their conditions."""


@dataclass(frozen=True, slots=True)
class Ratio:
    terms: tuple[Any, ...]


Answer = (
    Words
    | Letter
    | Value
    | Amount
    | Clock
    | Based
    | Residue
    | Group
    | Several
    | Equation
    | Region
    | Inequality
    | Grid
    | Ratio
)
Read = Callable[[str], Answer]

NOTHING = Words("no solution")

_PHRASES = {
    r"(?:there (?:is|are) )?no (?:real )?(?:solutions?|roots?)(?: exists?)?|none|(?:the )?(?:empty|null) set": NOTHING,
    r"(?:the limit |it )?does not exist|dne|d\.n\.e": Words("does not exist"),
}
_GEOMETRY = re.compile(r"\\(overline|triangle|angle) ?\{?([A-Z]{2,5})\}?")
_ARTICLE = re.compile(r"(?:the|an|a) (?=[a-z]{2})", re.IGNORECASE)
_SHORT = "am|an|as|at|be|by|do|go|he|if|in|is|it|me|my|no|of|ok|on|or|pm|so|to|up|us|we"
_WORD = re.compile(rf"(?<![a-zA-Z])(?:[a-zA-Z]{{3,}}|{_SHORT})(?![a-zA-Z])", re.IGNORECASE)


def obvious_words(text: str) -> Words | None:
    r"""Read words that are no mathematics, as "no solution" and ``\triangle ABC``; None for other text."""
    if text in (r"\emptyset", r"\{\}", r"\{ \}"):
        return NOTHING
    for pattern, words in _PHRASES.items():
        if re.fullmatch(pattern, text, re.IGNORECASE):
            return words
    if division := re.fullmatch(r"(\d+) ?(?:R|r|\\text\{ ?R ?\}|remainder) ?(\d+)", text):
        return Words(" remainder ".join(division.groups()))
    if name := _GEOMETRY.fullmatch(text):
        return Words(as_words(name.group(2)).key, name.group(1))
    if re.fullmatch(r"[a-zA-Z]{2,}", text) and not is_product(text):
        return replace(as_words(text), product=read_expression(text) if len(text) < 4 else None)
    if re.search(r"\d,0\d", text) and not re.search(r"\d,(?:000|0\d\d)(?!\d)", text):
        return as_words(text)  # "10,00" is neither a number nor two
    return None


def as_words(text: str) -> Words:
    """``text`` as Words, without articles and in lower case; mathematics that is not understood keeps its case."""
    plain = " ".join(re.sub(r"\\text\{([^{}]*)\}", lambda match: f" {match.group(1).casefold()} ", text).split())
    plain = re.sub(r"(?<=\d)(?:st|nd|rd|th)\b", "", plain)  # July 4th
    if re.fullmatch(r"[^\\{}^_=+\d]*[a-zA-Z]{2}[^\\{}^_=+]*", plain):
        article = _ARTICLE.match(plain)
        plain = _WORD.sub(lambda match: match.group().casefold(), plain[article.end() :] if article else plain)
    hyphenless = plain.replace("-", " ")
    return Words(hyphenless if hyphenless.replace(" ", "").isalpha() else plain.replace(" ", ""))
