"""Decides whether two expressions have the same value, exactly or to far more digits than anybody writes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from typing import Any

from spo_core.verify.exact.huge import is_huge, same_huge
from spo_core.verify.exact.numeric_value import Undefined, near, quotient, value_at

_BITS = 600  # precision of constants, which must agree to all but _SPARE of them
_FEWER_BITS = 260  # precision of functions at a point
_SPARE = 100
_POINTS = 14
_DECISIVE = 4  # points at which both must be defined
_MOST_UNKNOWNS = 12


def same_value(one: Any, other: Any) -> bool:
    """Whether two values, each a ``Fraction`` or a sympy expression, are equal. No tolerance: 0.333 is not 1/3, and
    3.14159 is not pi.

    Functions are equal if they are at random points, positive and negative, at which both are defined.
    """
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one == other
    import sympy

    one, other = to_sympy(one), to_sympy(other)
    if one.has(sympy.nan, sympy.zoo) or other.has(sympy.nan, sympy.zoo):
        return False  # 1/0 equals nothing
    if one == other:
        return True
    if (one.is_Rational and other.is_Rational) or one.has(sympy.oo) or other.has(sympy.oo):
        return False
    if not one.free_symbols and not other.free_symbols:
        return _same_constant(one, other)
    if is_huge(one) or is_huge(other):
        return same_huge(one, other)
    compared = 0
    for left, right in _values(one, other):
        if not near(left, right, _FEWER_BITS - _SPARE):
            return False
        compared += 1
    return compared >= _DECISIVE or bool(sympy.expand(one - other) == 0)


def proportional(one: Any, other: Any) -> Any | None:
    """The constant other than 0 by which ``other`` must be multiplied to give ``one``; None where there is none."""
    one, other = to_sympy(one), to_sympy(other)
    if not one.free_symbols or one.free_symbols != other.free_symbols:
        return None
    ratio = None
    compared = 0
    for left, right in _values(one, other):
        if left == 0 and right == 0:
            continue
        if left == 0 or right == 0:
            return None
        found = quotient(left, right, _FEWER_BITS)
        if ratio is not None and not near(ratio, found, _FEWER_BITS - _SPARE):
            return None
        ratio = found
        compared += 1
    return ratio if compared >= _DECISIVE else None


def to_sympy(value: Any) -> Any:
    import sympy

    return sympy.Rational(value.numerator, value.denominator) if isinstance(value, Fraction) else value


def _same_constant(one: Any, other: Any) -> bool:
    for real in (True, False):
        try:
            left, right = (value_at(side, {}, _BITS, real=real) for side in (one, other))
        except Undefined:
            continue
        return near(left, right, _BITS - _SPARE)
    return False


def _values(one: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the values of both at points where both are defined: real values, if there are enough such points."""
    import sympy

    unknowns = sorted(one.free_symbols | other.free_symbols, key=str)
    if len(unknowns) > _MOST_UNKNOWNS:
        return
    points = _points(one, other, unknowns)
    complex_only = one.has(sympy.I) or other.has(sympy.I) or any(map(_is_complex, points[0].values()))
    for real in (False,) if complex_only else (True, False):
        found = 0
        for where in points:
            try:
                pair = tuple(value_at(side, where, _FEWER_BITS, real=real) for side in (one, other))
            except Undefined:
                continue
            found += 1
            yield pair
        if found >= _DECISIVE:
            return


def _is_complex(value: Any) -> bool:
    return not isinstance(value, Fraction)


def _points(one: Any, other: Any, unknowns: list[Any]) -> list[dict[Any, Any]]:
    """Points at which to compare, always the same: small and large, of both signs; whole or complex where needed."""
    import sympy

    whole, natural = set(), set()
    is_complex = False
    for side in (one, other):
        for node in sympy.preorder_traversal(side):
            kind = type(node).__name__
            if node.is_Pow and (node.base.is_negative or node.base == sympy.I):
                whole |= node.exp.free_symbols  # (-1)^n
            elif kind in ("Sum", "Product"):
                natural |= set().union(*(limit.free_symbols for limit in node.limits[0][1:]))
            elif kind in ("GreatestDivisor", "LeastMultiple", "factorial2"):
                natural |= node.free_symbols
            elif kind in ("floor", "ceiling"):
                whole |= {symbol for symbol in node.free_symbols if symbol.name in "kmn"}  # by custom
            elif kind in ("conjugate", "re", "im", "arg"):
                is_complex = True
            elif kind == "Abs" and any(symbol.name[0] in "zw" for symbol in node.free_symbols):
                is_complex = True  # z is complex, by custom
    if is_complex:
        import mpmath

        draws = _drawn(2 * len(unknowns))
        return [
            {
                unknown: mpmath.mpc(*(mpmath.mpf(part.numerator) / part.denominator for part in row[2 * i : 2 * i + 2]))
                for i, unknown in enumerate(unknowns)
            }
            for row in draws
        ]
    points = []
    for row in _drawn(len(unknowns)):
        where: dict[Any, Any] = {}
        for unknown, value in zip(unknowns, row, strict=True):
            if unknown in natural:
                where[unknown] = Fraction(1 + abs(value.numerator) % 13)
            elif unknown in whole:
                where[unknown] = Fraction(value.numerator % 25 - 12)
            else:
                where[unknown] = value
        points.append(where)
    return points


@cache
def _drawn(width: int) -> list[list[Fraction]]:
    """Rows of ``width`` fractions: every other row positive, below 1, below 5 and below 60 in turn."""
    rng = random.Random(0)
    rows = []
    for index in range(_POINTS):
        signs = (1,) if index % 2 else (-1, 1)
        most = (5, 5, 1, 1, 60, 60)[index % 6]
        rows.append([Fraction(rng.choice(signs) * rng.randint(1, 89 * most), 89) for _ in range(width)])
    return rows
