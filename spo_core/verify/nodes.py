"""The kinds of answer that ``structures.read`` tells apart."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from spo_core.verify.expressions import GREEK

VARIABLE = rf"(?:[a-zA-Z]|\\(?:{'|'.join(sorted(GREEK))})(?![a-z]))(?:_\{{[^{{}}]*\}})?"
SIMPLE_NAME = re.compile(VARIABLE)


@dataclass(frozen=True, slots=True)
class Words:
    key: str


@dataclass(frozen=True, slots=True)
class Letter:
    """One letter: a choice, or a variable."""

    name: str
    value: Any | None
    text: str = ""
    """What stands behind the choice: ``5`` in ``(A) 5``."""


@dataclass(frozen=True, slots=True)
class Value:
    value: Any


@dataclass(frozen=True, slots=True)
class Amount:
    value: Any
    unit: str | None
    product: Any | None = None
    """``5 m`` may also be five times m."""


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
class Group:
    """``(1,2)``, a tuple or an interval: only what it is compared with tells."""

    left: str
    right: str
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Several:
    items: tuple[Node, ...]
    ordered: bool


@dataclass(frozen=True, slots=True)
class Equation:
    """``a = b``, or a chain ``a = b = c``."""

    sides: tuple[Node, ...]
    name: str | None = None
    """The first or last side, where that is but a name for the others, as in ``x = 5``."""
    named: int = 0

    def values(self) -> tuple[Node, ...]:
        """The sides, less the name."""
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
    """The variable it is said of, if any."""


@dataclass(frozen=True, slots=True)
class Inequality:
    """In several unknowns: ``difference`` is positive, or not negative."""

    difference: Any
    strict: bool


@dataclass(frozen=True, slots=True)
class Grid:
    rows: tuple[tuple[Node, ...], ...]


Node = Words | Letter | Value | Amount | Clock | Based | Group | Several | Equation | Region | Inequality | Grid

NOTHING = Words("no solution")
