r"""Evaluates an expression at a point: to an exact fraction where possible, else to many correct digits.

Functions are the partial functions of school: an odd root of a negative number is real, an even one is undefined. So
``\sqrt a\sqrt b`` has no value where a is negative, and ``\sqrt{ab}`` may have one. Only in expressions that hold i,
and where nothing else is defined, are roots of negative constants complex.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache
from typing import Any

_MOST_BITS = 20_000  # precision at which what still cancels is taken for zero
_LOST = 40  # bits that a sum may lose before it is computed again with more
_LARGEST_LOG = 100_000  # largest binary logarithm of a value that is computed
_EXACT_BITS = 4000  # bits of numerator and denominator; larger fractions are rounded
_MOST_TERMS = 200  # terms of a sum that is evaluated


class Undefined(Exception):
    """Raised where an expression has no value at a point, or one too large to compute."""


class _Cancelled(Exception):
    """Raised where a sum has lost too many digits."""


def value_at(expression: Any, where: Mapping[Any, Any], bits: int, *, real: bool) -> Any:
    """Value of ``expression`` as a ``Fraction``, or as an mpmath number correct to nearly ``bits`` bits.

    ``where`` maps every symbol of it to a ``Fraction`` or an mpmath number. Raises Undefined.
    """
    work = bits
    while True:
        try:
            return _Evaluator(where, work, real).value(expression)
        except _Cancelled:
            work *= 4
        except (ZeroDivisionError, OverflowError, ValueError, ArithmeticError, NotImplementedError, TypeError):
            raise Undefined from None


def near(one: Any, other: Any, bits: int) -> bool:
    """Whether two values are the same: exactly, or to ``bits`` bits."""
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one == other
    context = _context(bits + 2 * _LOST)
    one, other = _rounded(one, context), _rounded(other, context)
    return bool(abs(one - other) <= (abs(one) + abs(other)) * context.ldexp(1, -bits))


def quotient(one: Any, other: Any, bits: int) -> Any:
    """One value divided by another; raises ZeroDivisionError."""
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one / other
    context = _context(bits)
    return _rounded(one, context) / _rounded(other, context)


@cache
def _context(bits: int) -> Any:
    """A new mpmath context, so that the global precision does not change."""
    import mpmath

    context = mpmath.MPContext()
    context.prec = bits
    return context


def _rounded(value: Any, context: Any) -> Any:
    if isinstance(value, Fraction):
        return context.mpf(value.numerator) / value.denominator
    return context.convert(value)


class _Evaluator:
    def __init__(self, where: Mapping[Any, Any], bits: int, real: bool) -> None:
        self.where, self.bits, self.real = where, bits, real
        self.context = _context(bits)

    def value(self, node: Any) -> Any:
        if node.is_Symbol:
            return self.where[node]
        if node.is_Rational:
            return Fraction(int(node.p), int(node.q))
        kind = type(node).__name__
        if node.is_Add:
            return self._sum([self.value(term) for term in node.args])
        if node.is_Mul:
            product: Any = Fraction(1)
            for factor in node.args:
                product = self._times(product, self.value(factor))
            return product
        if node.is_Pow:
            return self._power(self.value(node.base), self.value(node.exp), symbols=bool(node.free_symbols))
        if kind == "ImaginaryUnit":
            if self.real:
                raise Undefined
            return self.context.mpc(0, 1)
        constant = {"Pi": "pi", "Exp1": "e", "GoldenRatio": "phi"}.get(kind)
        if constant:
            return +getattr(self.context, constant)
        if kind in ("Sum", "Product"):
            return self._series(node, kind)
        function = _FUNCTIONS.get(kind)
        if function is not None:
            return function(self, *[self.value(argument) for argument in node.args])
        if node.is_Function and hasattr(node, "name"):
            return self._unknown_function(node.name, [self.value(argument) for argument in node.args])
        raise Undefined

    def number(self, value: Any) -> Any:
        """``value`` as an mpmath number. Raises Undefined for a complex one in real mode."""
        number = _rounded(value, self.context)
        if self.real and hasattr(number, "imag") and number.imag != 0:
            raise Undefined
        return number

    def _sum(self, terms: list[Any]) -> Any:
        if all(isinstance(term, Fraction) for term in terms):
            return _limited(sum(terms, Fraction(0)))
        numbers = [self.number(term) for term in terms]
        total = sum(numbers, self.context.mpf(0))
        most = max(abs(number) for number in numbers)
        if most and abs(total) < self.context.ldexp(most, -_LOST):
            if self.bits < _MOST_BITS:
                raise _Cancelled
            return Fraction(0)
        return total

    def _times(self, one: Any, other: Any) -> Any:
        if isinstance(one, Fraction) and isinstance(other, Fraction):
            return _limited(one * other)
        return self.number(one) * self.number(other)

    def _power(self, base: Any, exponent: Any, *, symbols: bool) -> Any:
        if isinstance(exponent, Fraction) and exponent.denominator == 1:
            power = int(exponent)
            if isinstance(base, Fraction):
                size = max(base.numerator.bit_length(), base.denominator.bit_length())
                if abs(power) * size <= _EXACT_BITS:
                    return base**power
            number = self.number(base)
            self._check_size(number, power)
            return number**power
        number = self.number(base)
        if number == 0:
            if self.number(exponent) > 0:
                return Fraction(0)
            raise Undefined
        if _is_real(number) and number < 0 and (self.real or symbols):
            if isinstance(exponent, Fraction) and exponent.denominator % 2:
                root = (-number) ** self.number(exponent)
                return -root if exponent.numerator % 2 else root
            raise Undefined
        power = self.number(exponent)
        self._check_size(number, power)
        return number**power

    def _check_size(self, base: Any, exponent: Any) -> None:
        if base != 0 and abs(exponent) * (abs(self.context.mag(base)) + 1) > _LARGEST_LOG:
            raise Undefined

    def _series(self, node: Any, kind: str) -> Any:
        index, low, high = node.limits[0]
        begin, end = self.value(low), self.value(high)
        whole = all(isinstance(limit, Fraction) and limit.denominator == 1 for limit in (begin, end))
        if len(node.limits) != 1 or not whole or end - begin > _MOST_TERMS:
            raise Undefined
        values = []
        for number in range(int(begin), int(end) + 1):
            inner = _Evaluator({**self.where, index: Fraction(number)}, self.bits, self.real)
            values.append(inner.value(node.function))
        if kind == "Sum":
            return self._sum(values) if values else Fraction(0)
        product: Any = Fraction(1)
        for value in values:
            product = self._times(product, value)
        return product

    def _unknown_function(self, name: str, arguments: list[Any]) -> Any:
        """Evaluate a function known by name only, as some function without any algebraic property."""
        total = self.context.mpf(sum(ord(letter) * 31**place for place, letter in enumerate(name)) % 1009)
        for place, argument in enumerate(arguments):
            total = self.context.cos(total + (place + 2) * self.number(argument)) + self.number(argument) / (7 + place)
        return total


def _is_real(number: Any) -> bool:
    return not hasattr(number, "imag") or number.imag == 0


def _limited(value: Fraction) -> Any:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > 4 * _EXACT_BITS:
        raise Undefined
    return value


def _analytic(name: str, domain: Callable[[Any], bool] = lambda value: True) -> Callable[..., Any]:
    """mpmath's function of one argument; ``domain`` tells for which real arguments it is real."""

    def evaluate(evaluator: _Evaluator, argument: Any) -> Any:
        number = evaluator.number(argument)
        if _is_real(number) and evaluator.real and not domain(number):
            raise Undefined
        if number and evaluator.context.mag(number) > evaluator.bits:
            raise Undefined
        return getattr(evaluator.context, name)(number)

    return evaluate


def _exp(evaluator: _Evaluator, argument: Any) -> Any:
    number = evaluator.number(argument)
    if abs(number) > _LARGEST_LOG:
        raise Undefined
    return evaluator.context.exp(number)


def _log(evaluator: _Evaluator, argument: Any, base: Any | None = None) -> Any:
    numbers = [evaluator.number(value) for value in (argument, base) if value is not None]
    if any(number == 0 or (_is_real(number) and number < 0 and evaluator.real) for number in numbers):
        raise Undefined
    logs = [evaluator.context.log(number) for number in numbers]
    return logs[0] if base is None else logs[0] / logs[1]


def _absolute(evaluator: _Evaluator, argument: Any) -> Any:
    return abs(argument) if isinstance(argument, Fraction) else abs(evaluator.number(argument))


def _whole(name: str) -> Callable[..., Any]:
    def evaluate(evaluator: _Evaluator, argument: Any) -> Any:
        if isinstance(argument, Fraction):
            return Fraction(argument.__floor__() if name == "floor" else argument.__ceil__())
        number = evaluator.number(argument)
        if not _is_real(number) or evaluator.context.mag(number) > evaluator.bits - _LOST:
            raise Undefined
        return Fraction(int(getattr(evaluator.context, name)(number)))

    return evaluate


def _factorial(evaluator: _Evaluator, argument: Any) -> Any:
    number = evaluator.number(argument)
    if abs(number) > _LARGEST_LOG // 100 or (_is_real(number) and number < 0):
        raise Undefined
    if isinstance(argument, Fraction) and argument.denominator == 1:
        import math

        return Fraction(math.factorial(int(argument)))
    return evaluator.context.gamma(number + 1)


def _double_factorial(evaluator: _Evaluator, argument: Any) -> Any:
    number = evaluator.number(argument)
    if not _is_real(number) or not 0 <= number < _LARGEST_LOG // 100:
        raise Undefined
    return evaluator.context.fac2(number)


def _binomial(evaluator: _Evaluator, above: Any, below: Any) -> Any:
    numbers = [evaluator.number(value) for value in (above, below)]
    if any(abs(number) > _LARGEST_LOG // 100 for number in numbers):
        raise Undefined
    return evaluator.context.binomial(*numbers)


def _extreme(choose: Callable[..., Any]) -> Callable[..., Any]:
    def evaluate(evaluator: _Evaluator, *arguments: Any) -> Any:
        if all(isinstance(argument, Fraction) for argument in arguments):
            return choose(arguments)
        numbers = [evaluator.number(argument) for argument in arguments]
        if not all(map(_is_real, numbers)):
            raise Undefined
        return choose(numbers)

    return evaluate


def _divisors(name: str) -> Callable[..., Any]:
    """A function of whole numbers, as ``math`` has it."""

    def evaluate(evaluator: _Evaluator, *arguments: Any) -> Any:
        import math

        if not all(isinstance(argument, Fraction) and argument.denominator == 1 for argument in arguments):
            raise Undefined
        return Fraction(getattr(math, name)(*map(int, arguments)))

    return evaluate


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: _analytic(name) for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")},
    **{name: _analytic(name) for name in ("coth", "sech", "csch", "atan", "acot", "asinh")},
    **{name: _analytic(name, lambda value: abs(value) <= 1) for name in ("asin", "acos", "atanh")},
    **{name: _analytic(name, lambda value: abs(value) >= 1) for name in ("asec", "acsc")},
    "acosh": _analytic("acosh", lambda value: value >= 1),
    "exp": _exp,
    "log": _log,
    "Abs": _absolute,
    "floor": _whole("floor"),
    "ceiling": _whole("ceil"),
    "factorial": _factorial,
    "factorial2": _double_factorial,
    "FallingFactorial": lambda evaluator, above, below: evaluator.context.ff(*map(evaluator.number, (above, below))),
    "binomial": _binomial,
    "Max": _extreme(max),
    "Min": _extreme(min),
    "GreatestDivisor": _divisors("gcd"),
    "LeastMultiple": _divisors("lcm"),
    "conjugate": _analytic("conj"),
    "re": _analytic("re"),
    "im": _analytic("im"),
    "arg": _analytic("arg"),
    "sign": _analytic("sign"),
}
