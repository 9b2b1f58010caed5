r"""Reads one scalar expression, whole and exactly, from normalised LaTeX.

Building expressions is sympy's. Reading them is ours, because the readers at hand are lenient where a grader must not
be: latex2sympy, which math-verify reads with, takes ``--5`` for 5, ``1 2`` for 3, ``1/2x`` for 1/(2x) and ``foo 5`` for
5*f*o*o, rounds decimals to binary and needs a tenth of a second for a parenthesis. Here whatever is not understood is
refused, and numbers that nobody could write out are not worked out. What it has no word for is left to ``library``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from spo_core.verify.exact.tokens import Unreadable, number_of, plain_number, tokenise

_LONGEST = 1000
_DEEPEST = 60
_MOST_BITS = 200_000  # of a power that is worked out
_LARGEST_FACTORIAL = 3000

_LETTERS = """
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau phi chi psi omega
    Delta Gamma Lambda Omega Phi Psi Sigma Theta Xi
"""
GREEK = frozenset(_LETTERS.split())
_CALLS = {
    "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc", "arcsin": "asin",
    "arccos": "acos", "arctan": "atan", "sinh": "sinh", "cosh": "cosh", "tanh": "tanh", "ln": "log", "exp": "exp",
    "log": "log",
}  # fmt: skip
_INVERSES = {"sin": "asin", "cos": "acos", "tan": "atan", "cot": "acot", "sec": "asec", "csc": "acsc"}
_PAIRS = {"(": ")", "[": "]", "{": "}", "|": "|", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
_SIGNS = frozenset(["+", "-"])
_PRODUCTS = frozenset([r"\cdot", r"\times", "/", r"\div"])

_RATIO = re.compile(r"([-+]?)(?:(\d+)/(\d+)|\\frac\{(-?\d+)\}\{(-?\d+)\})", re.ASCII)


def read_expression(text: str) -> Any | None:
    """A ``Fraction`` or a sympy expression; None where the whole of ``text`` is not one expression."""
    if len(text) > _LONGEST:
        return None
    try:
        ratio = _RATIO.fullmatch(text)
        if ratio:
            sign, *parts = ratio.groups()
            above, below = (int(part) for part in parts if part is not None)
            return (-1 if sign == "-" else 1) * Fraction(above, below) if below else None
        sign, bare = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
        number = plain_number(bare)
        if number is not None:
            return sign * number
        return _Reader(text).whole()
    except (Unreadable, RecursionError, ArithmeticError, ValueError, TypeError, AttributeError, NotImplementedError):
        return None


class _Reader:
    """Recursive descent: sums of products of powers."""

    def __init__(self, text: str) -> None:
        import sympy

        self.sympy = sympy
        self.tokens = tokenise(text)
        self.position = 0
        self.depth = 0
        self.bars = 0  # absolute values that are open

    def whole(self) -> Any:
        value = self._sum()
        if self.position != len(self.tokens):
            raise Unreadable
        return value

    def _peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self.position += 1
        return token

    def _take(self, token: str) -> None:
        if self._next() != token:
            raise Unreadable

    def _sum(self) -> Any:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise Unreadable
        total = self._signed(first=True)
        while self._peek() in _SIGNS:
            minus = self._next() == "-"
            if self._peek() in _SIGNS and (minus or self._peek() == "+"):
                raise Unreadable  # "--5": a slip of the pen, not five
            term = self._signed(first=False)
            total = total - term if minus else total + term
        self.depth -= 1
        return total

    def _signed(self, *, first: bool) -> Any:
        if self._peek() not in _SIGNS:
            return self._product()
        sign = self._next()
        if self._peek() in _SIGNS or (sign == "+" and not first):
            raise Unreadable
        return -self._product() if sign == "-" else self._product()

    def _product(self) -> Any:
        value = self._power()
        while True:
            token = self._peek()
            if token in _PRODUCTS:
                self._next()
                minus = self._peek() == "-"
                if minus:
                    self._next()
                factor = -self._power() if minus else self._power()
                value = value / factor if token in ("/", r"\div") else value * factor
            elif self._starts_factor(token):
                value = value * self._power()
            else:
                return value

    def _starts_factor(self, token: str) -> bool:
        if token == "|":
            return not self.bars
        if token[:1].isdigit() or token[:1] == ".":
            before = self.tokens[self.position - 1]
            if before[-1].isalnum() and not before.startswith("\\"):
                raise Unreadable  # "1 2", "x2"
            return True
        return bool(token) and (token.isalpha() or token in _PAIRS or (token[0] == "\\" and token[1:] in _NAMES))

    def _power(self) -> Any:
        value = self._atom()
        while self._peek() in ("!", "^", r"^\circ"):
            token = self._next()
            if token == "!":
                value = self._factorial(value)
            elif token == "^":
                value = self._raised(value, self._group())
            else:
                value = value * self.sympy.pi / 180
        return value

    def _group(self) -> Any:
        self._take("{")
        bars, self.bars = self.bars, 0
        value = self._sum()
        self.bars = bars
        self._take("}")
        return value

    def _atom(self) -> Any:
        token = self._next()
        if not token:
            raise Unreadable
        if token[0].isdigit() or token[0] == ".":
            number = number_of(token)
            assert number is not None
            return self.sympy.Rational(number.numerator, number.denominator)
        if token.isalpha():
            return self._letter(token)
        if token in _PAIRS:
            return self._enclosed(token)
        name = token[1:]
        if name in _CALLS:
            return self._call(name)
        if name in GREEK:
            return self._symbol(name)
        reader: Callable[[], Any] | None = {
            "pi": lambda: self.sympy.pi,
            "infty": lambda: self.sympy.oo,
            "frac": lambda: self._group() / self._group(),
            "sqrt": self._root,
            "binom": self._binomial,
            "gcd": lambda: self._greatest_or_least("gcd"),
            "lcm": lambda: self._greatest_or_least("lcm"),
            "max": lambda: self._greatest_or_least("Max"),
            "min": lambda: self._greatest_or_least("Min"),
        }.get(name)
        if reader is None:
            raise Unreadable
        return reader()

    def _letter(self, letter: str) -> Any:
        if self._peek() != "_":
            if letter == "e":
                return self.sympy.E
            if letter == "i":
                return self.sympy.I
            if letter in "fgh" and self._peek() == "(":
                self._next()
                return self.sympy.Function(letter)(self._closed_by(")"))
        return self._symbol(letter)

    def _symbol(self, name: str) -> Any:
        if self._peek() == "_":
            self._next()
            self._take("{")
            subscript = []
            while self._peek() not in ("}", ""):
                subscript.append(self._next())
            self._take("}")
            name += "_" + "".join(subscript)
        return self.sympy.Symbol(name)

    def _enclosed(self, opening: str) -> Any:
        if opening == "|":
            self.bars += 1
        bars = self.bars
        if opening != "|":
            self.bars = 0
        before = self.tokens[self.position - 2] if self.position > 1 else ""
        value = self._closed_by(_PAIRS[opening])
        if opening == "{" and value.is_Integer and (before[-1:].isdigit() or self._peek()[:1].isdigit()):
            raise Unreadable  # "{4}2" shows forty-two
        self.bars = bars - (opening == "|")
        if opening == "|":
            return self.sympy.Abs(value)
        if opening == r"\lfloor":
            return self.sympy.floor(value)
        return self.sympy.ceiling(value) if opening == r"\lceil" else value

    def _closed_by(self, closing: str) -> Any:
        value = self._sum()
        self._take(closing)
        return value

    def _root(self) -> Any:
        if self._peek() != "[":
            return self._raised(self._group(), self.sympy.Rational(1, 2))
        self._next()
        degree = self._closed_by("]")
        return self._raised(self._group(), 1 / degree)

    def _greatest_or_least(self, name: str) -> Any:
        """Of numbers."""
        self._take("(")
        values = [self._sum()]
        while self._peek() == ",":
            self._next()
            values.append(self._sum())
        self._take(")")
        if not all(value.is_Integer if name in ("gcd", "lcm") else value.is_real for value in values):
            raise Unreadable
        if len(values) < 2 or any(value.free_symbols for value in values):
            raise Unreadable
        return getattr(self.sympy, name)(*values) if name in ("Max", "Min") else getattr(self.sympy, name)(values)

    def _binomial(self) -> Any:
        above, below = self._group(), self._group()
        if above.is_number and not abs(above) <= 10 * _LARGEST_FACTORIAL:
            raise Unreadable
        return self.sympy.binomial(above, below)

    def _factorial(self, value: Any) -> Any:
        if value.is_number and not abs(value) <= _LARGEST_FACTORIAL:
            raise Unreadable
        return self.sympy.factorial(value)

    def _raised(self, base: Any, exponent: Any) -> Any:
        """A power, unless it is too large; an odd root of a negative number is the real one, as at school."""
        if base.is_number and exponent.is_number and base not in (0, 1, -1, self.sympy.E):
            bits = base.p.bit_length() + base.q.bit_length() if base.is_Rational else 64
            size = abs(float(exponent)) if exponent.is_real else 1.0
            if not (size * bits <= _MOST_BITS and (exponent.is_integer or bits <= 4000)):
                raise Unreadable
        if base.is_Rational and base < 0 and exponent.is_Rational and exponent.q % 2 and exponent.q > 1:
            return (-1) ** exponent.p * (-base) ** exponent
        return base**exponent

    def _call(self, name: str) -> Any:
        base = power = None
        while self._peek() in ("_", "^"):
            if self._next() == "_":
                base = self._group()
            else:
                power = self._group()
        if name == "log":
            base = self.sympy.Integer(10) if base is None else base
        elif base is not None:
            raise Unreadable
        function = _CALLS[name]
        if power == -1:
            function, power = _INVERSES[name], None
        argument = self._argument()
        value = self.sympy.log(argument, base) if name == "log" else getattr(self.sympy, function)(argument)
        return value if power is None else self._raised(value, power)

    def _argument(self) -> Any:
        """``(x+1)`` of ``sin(x+1)y``; without parentheses the whole product, ``2x`` of ``sin 2x cos x``."""
        if self._peek() in ("(", "{", "["):
            return self._enclosed(self._next())
        if self._peek()[1:] in _CALLS:
            return self._call(self._next()[1:])
        value = self._power()
        while self._starts_factor(self._peek()) and self._peek() != "(" and self._peek()[1:] not in _CALLS:
            value = value * self._power()
        if self._peek() == "/":
            raise Unreadable  # sin x/2: who knows
        return value


_NAMES = frozenset([*GREEK, *_CALLS, "pi", "infty", "frac", "sqrt", "binom", "gcd", "lcm", "max", "min"])
