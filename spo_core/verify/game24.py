r"""Game of 24: whether an expression makes 24 of the puzzle's four numbers (docs/reference.md 4.4).

Read by a parser of its own and computed in exact fractions, where the published grader calls ``eval`` with a tolerance.
So ``**`` and ``//`` do not pass, while ``×``, ``\cdot`` and ``\left`` do. The game knows neither a sign before a number
nor a product without an operator, ``2(3+9)``: both cannot be read here.
"""

from __future__ import annotations

import re
from fractions import Fraction

from spo_core.verify.outcome import Outcome

TARGET = 24
LONGEST = 200  # characters; a longer expression of four numbers only adds parentheses
DEEPEST = 20  # parentheses within parentheses: far below the interpreter's recursion limit

_TOKEN = re.compile(r"\d+|\\[a-zA-Z]+|[-+*/()\[\]{}]", re.ASCII)
_SPACE = re.compile(r"(?:\s|\\[ ,;:!]|\\left(?![a-zA-Z])|\\right(?![a-zA-Z]))+")
_SPELLINGS = str.maketrans({"×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/", "−": "-", "–": "-"})
_OPERATORS = {"+": "+", "-": "-", "*": "*", "/": "/", r"\times": "*", r"\cdot": "*", r"\div": "/"}
_FRACTIONS = (r"\frac", r"\dfrac", r"\tfrac")
_CLOSING = {"(": ")", "[": "]", "{": "}"}

Value = Fraction | None  # None: divided by zero


class _Unreadable(Exception):
    pass


def compare(given: str, gold: str) -> Outcome:
    """Grade an expression, which may say "= 24" on either side; ``gold`` holds the puzzle's numbers."""
    if len(given) > LONGEST:
        return Outcome.UNPARSABLE
    sides = [side.strip() for side in given.strip(" $.\n").split("=")]
    if len(sides) == 2 and sides[0] == str(TARGET):
        sides.reverse()
    expression, *claims = sides
    try:
        value, numbers = _read(expression)
    except _Unreadable:
        return Outcome.UNPARSABLE
    puzzle = [int(number) for number in re.findall(r"\d+", gold, re.ASCII)]
    right = (
        value == TARGET
        and sorted(numbers) == sorted(puzzle)
        and len(claims) <= 1
        and all(_SPACE.sub("", claim) == str(TARGET) for claim in claims)
    )
    return Outcome.CORRECT if right else Outcome.WRONG


def _read(expression: str) -> tuple[Value, list[int]]:
    """Compute an expression's value, and list the numbers it uses, in order; raises where it cannot be read."""
    parser = _Parser(_tokens(expression))
    value = parser.sum(0)
    if parser.next() is not None:
        raise _Unreadable
    return value, parser.numbers


def _tokens(expression: str) -> list[str]:
    text = expression.translate(_SPELLINGS)
    tokens: list[str] = []
    at = 0
    while at < len(text):
        space = _SPACE.match(text, at)
        token = None if space else _TOKEN.match(text, at)
        if not space and not token:
            raise _Unreadable
        if token:
            tokens.append(token.group())
        at = (space or token).end()  # type: ignore[union-attr]
    return tokens


class _Parser:
    """Recursive descent over the tokens; numbers are read whole, so 42 is not 4 and 2."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.at = 0
        self.numbers: list[int] = []

    def next(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self) -> str:
        token = self.next()
        if token is None:
            raise _Unreadable
        self.at += 1
        return token

    def sum(self, depth: int) -> Value:
        value = self.product(depth)
        while (operator := _OPERATORS.get(self.next() or "", "")) in ("+", "-"):
            self.take()
            value = _applied(operator, value, self.product(depth))
        return value

    def product(self, depth: int) -> Value:
        value = self.atom(depth)
        while (operator := _OPERATORS.get(self.next() or "", "")) in ("*", "/"):
            self.take()
            value = _applied(operator, value, self.atom(depth))
        return value

    def atom(self, depth: int) -> Value:
        token = self.take()
        if token.isdigit():
            self.numbers.append(int(token))
            return Fraction(int(token))
        if token in _FRACTIONS:
            return _applied("/", self.group("{", depth), self.group("{", depth))
        self.at -= 1
        return self.group(token, depth)

    def group(self, opening: str, depth: int) -> Value:
        if depth >= DEEPEST or opening not in _CLOSING or self.take() != opening:
            raise _Unreadable
        value = self.sum(depth + 1)
        if self.take() != _CLOSING[opening]:
            raise _Unreadable
        return value


def _applied(operator: str, left: Value, right: Value) -> Value:
    if left is None or right is None:
        return None
    if operator == "/":
        return left / right if right else None
    return left + right if operator == "+" else left - right if operator == "-" else left * right
