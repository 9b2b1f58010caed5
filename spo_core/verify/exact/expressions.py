r"""Reads one scalar expression, whole and exactly, from normalised LaTeX.

sympy builds the expressions, but does not read them, because the readers at hand are lenient where a grader must not
be: latex2sympy, which math-verify reads with, takes ``--5`` for 5, ``1 2`` for 3, ``1/2x`` for 1/(2x) and ``foo 5`` for
5*f*o*o, rounds decimals to binary and needs a tenth of a second for a parenthesis. Here whatever is not understood is
refused, and numbers too long to write out stay symbols. Integrals, limits and determinants are left to ``library``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from spo_core.verify.exact.functions import CALLED, INVERSES, OF_SEVERAL, PREFIXED, applied, of_several
from spo_core.verify.exact.huge import factorial, power
from spo_core.verify.exact.tokens import Unreadable, number_of, plain_number, tokenise

_LONGEST = 1000
_DEEPEST = 60
_MOST_TERMS = 1000  # terms of a sum that is added up

_LETTERS = """
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau phi chi psi omega
    hbar Delta Gamma Lambda Omega Phi Psi Sigma Theta Xi
"""
GREEK = frozenset(_LETTERS.split())
_PAIRS = {
    "(": ")", "[": "]", "{": "}", "|": "|", r"\|": r"\|", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil",
}  # fmt: skip
_SIGNS = frozenset(["+", "-"])
_PRODUCTS = frozenset([r"\cdot", r"\times", "/", r"\div"])

_RATIO = re.compile(r"([-+]?)(?:(\d+)/(\d+)|\\frac\{(-?\d+)\}\{(-?\d+)\})", re.ASCII)


def read_expression(text: str) -> Any | None:
    """Read ``text`` as a ``Fraction`` or a sympy expression; None where all of it is not one expression."""
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
    """Recursive descent over tokens: sums of products of powers. Methods raise Unreadable."""

    def __init__(self, text: str) -> None:
        import sympy

        self.sympy = sympy
        self.tokens = tokenise(text)
        self.position = 0
        self.depth = 0
        self.bars = 0  # absolute values that are open
        self.bound: set[str] = set()  # indices of sums and products that are open

    def whole(self) -> Any:
        value = self._sum()
        if self.position != len(self.tokens):
            raise Unreadable
        return value

    def _peek(self, ahead: int = 0) -> str:
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else ""

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
                raise Unreadable  # "--5" is a slip, not five
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
        if token in ("|", r"\|"):
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
                double = self._peek() == "!"
                if double:
                    self._next()
                    if self._peek() == "!":
                        raise Unreadable
                value = factorial(value, step=2 if double else 1)
            elif token == "^":
                value = power(value, self._group())
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
        if name in PREFIXED:
            return self._call(name)
        if name in CALLED:
            return applied(name, self._enclosed(self._next()))
        if name in OF_SEVERAL:
            return self._of_several(name)
        if name in GREEK:
            return self._symbol(name)
        reader: Callable[[], Any] | None = {
            "pi": lambda: self.sympy.pi,
            "infty": lambda: self.sympy.oo,
            "frac": lambda: self._group() / self._group(),
            "sqrt": self._root,
            "binom": lambda: of_several("C", [self._group(), self._group()]),
            "perm": lambda: of_several("P", [self._group(), self._group()]),
            "hat": self._unit_vector,
            "overline": self._conjugate,
            "bar": self._conjugate,
            "sum": lambda: self._series("Sum"),
            "prod": lambda: self._series("Product"),
        }.get(name)
        if reader is None:
            raise Unreadable
        return reader()

    def _letter(self, letter: str) -> Any:
        if self._peek() != "_" and letter not in self.bound:
            if letter == "e":
                return self.sympy.E
            if letter == "i":
                return self.sympy.I
            if letter in "fgh" and self._peek() == "(":
                self._next()
                return self.sympy.Function(letter)(self._closed_by(")"))
            if letter in "CP" and self._peek() == "(" and "," in self.tokens[self.position :]:
                return self._of_several(letter)
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
        if opening not in _PAIRS:
            raise Unreadable
        bar = opening in ("|", r"\|")
        if bar:
            self.bars += 1
        bars = self.bars
        if not bar:
            self.bars = 0
        before = self.tokens[self.position - 2] if self.position > 1 else ""
        value = self._closed_by(_PAIRS[opening])
        if opening == "{" and value.is_Integer and (before[-1:].isdigit() or self._peek()[:1].isdigit()):
            raise Unreadable  # "{4}2" shows forty-two
        self.bars = bars - bar
        name = {r"\lfloor": "floor", r"\lceil": "ceil"}.get(opening, "abs" if bar else "")
        return applied(name, value) if name else value

    def _closed_by(self, closing: str) -> Any:
        value = self._sum()
        self._take(closing)
        return value

    def _root(self) -> Any:
        if self._peek() != "[":
            return power(self._group(), self.sympy.Rational(1, 2))
        self._next()
        degree = self._closed_by("]")
        return power(self._group(), 1 / degree)

    def _unit_vector(self) -> Any:
        self._take("{")
        letter = self._next()
        self._take("}")
        if not letter.isalpha():
            raise Unreadable
        return self.sympy.Symbol(f"hat {letter}")

    def _conjugate(self) -> Any:
        value = self._group()
        letters = [symbol.name[0] in "zw" for symbol in value.free_symbols]
        if not (value.is_Symbol or value.has(self.sympy.I) or (letters and all(letters))):
            raise Unreadable
        return self.sympy.conjugate(value)

    def _of_several(self, name: str) -> Any:
        closing = {"(": ")", r"\{": r"\}"}.get(self._next())
        if closing is None:
            raise Unreadable
        values = [self._sum()]
        while self._peek() == ",":
            self._next()
            values.append(self._sum())
        self._take(closing)
        return of_several(name, values)

    def _series(self, kind: str) -> Any:
        r"""Read ``\sum_{k=1}^{n}`` of the product behind it; added up where the limits are numbers."""
        self._take("_")
        self._take("{")
        letter = self._next()
        if not letter.isalpha() or letter in self.bound:
            raise Unreadable
        self._take("=")
        low = self._closed_by("}")
        self._take("^")
        high = self._group()
        self.bound.add(letter)
        body = self._product()
        self.bound.remove(letter)
        index = self.sympy.Symbol(letter)
        if index in low.free_symbols | high.free_symbols:
            raise Unreadable
        if low.is_Integer and high.is_Integer and high - low <= _MOST_TERMS:
            terms = [body.xreplace({index: self.sympy.Integer(k)}) for k in range(int(low), int(high) + 1)]
            return (self.sympy.Add if kind == "Sum" else self.sympy.Mul)(*terms)
        if low.is_Integer and high.is_Integer and not (kind == "Sum" and body.is_polynomial(index)):
            raise Unreadable  # too many terms, and no closed form at hand
        series = getattr(self.sympy, kind)(body, (index, low, high))
        if low.is_number and high.is_number:
            series = series.doit()
            if series.has(self.sympy.Sum, self.sympy.Product, self.sympy.nan):
                raise Unreadable
        return series

    def _call(self, name: str) -> Any:
        base = exponent = None
        while self._peek() in ("_", "^"):
            if self._next() == "_":
                base = self._group()
            else:
                exponent = self._group()
        if base is not None and name != "log":
            raise Unreadable
        if exponent == -1 and name in INVERSES:
            name, exponent = INVERSES[name], None
        value = applied(name, self._argument(), base)
        return value if exponent is None else power(value, exponent)

    def _argument(self) -> Any:
        """Read a function's argument: ``(x+1)`` in ``sin(x+1)y``, and the whole product ``2x`` in ``sin 2x cos x``."""
        if self._peek() in ("(", "{", "["):
            return self._enclosed(self._next())
        if self._peek()[1:] in PREFIXED:
            return self._call(self._next()[1:])
        value = self._power()
        while self._starts_factor(self._peek()) and self._peek() != "(" and self._peek()[1:] not in PREFIXED:
            value = value * self._power()
        if self._peek() == "/" and self._peek(1)[1:] not in PREFIXED:
            raise Unreadable  # sin x/2 is ambiguous
        return value


_SPECIAL = ("pi", "infty", "frac", "sqrt", "binom", "perm", "hat", "overline", "bar", "sum", "prod")
_NAMES = frozenset([*GREEK, *PREFIXED, *CALLED, *OF_SEVERAL, *_SPECIAL])
