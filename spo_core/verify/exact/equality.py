"""Whether two expressions have the same value: exactly, or to far more digits than anybody writes."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

_DIGITS = 150  # irrational constants must agree to these
_FEWER_DIGITS = 60  # functions must agree to these at every point
_POINTS = 12
_HIGHEST_POWER = 100  # of what is worked out exactly at a point
_MOST_UNKNOWNS = 12


def same_value(one: Any, other: Any) -> bool:
    """Both are a ``Fraction`` or a sympy expression. No tolerance: 0.333 is not 1/3, and 3.14159 is not pi."""
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one == other
    import sympy

    one, other = _to_sympy(one), _to_sympy(other)
    if not (_is_a_value(one) and _is_a_value(other)):
        return False
    if one == other:
        return True
    if one.is_Rational and other.is_Rational:
        return False
    if one.has(sympy.oo, -sympy.oo) or other.has(sympy.oo, -sympy.oo):
        return False
    if one.atoms(sympy.core.function.AppliedUndef) or other.atoms(sympy.core.function.AppliedUndef):
        return bool(sympy.expand(one - other) == 0)
    unknowns = sorted(one.free_symbols | other.free_symbols, key=str)
    if len(unknowns) > _MOST_UNKNOWNS:
        return bool(sympy.expand(one - other) == 0)
    return _same_function(one, other, unknowns) if unknowns else _same_constant(one, other)


def proportional(one: Any, other: Any) -> Any | None:
    """The constant, if there is one other than 0, by which ``other`` must be multiplied to give ``one``."""
    import sympy

    one, other = _to_sympy(one), _to_sympy(other)
    if not one.free_symbols or one.free_symbols != other.free_symbols:
        return None
    ratio = sympy.cancel(one / other)
    if ratio.free_symbols:
        ratio = sympy.simplify(ratio)
    return ratio if not ratio.free_symbols and ratio.is_finite and ratio != 0 else None


def _to_sympy(value: Any) -> Any:
    import sympy

    return sympy.Rational(value.numerator, value.denominator) if isinstance(value, Fraction) else value


def _is_a_value(expression: Any) -> bool:
    """Not 1/0 or infinity minus infinity, which equal nothing."""
    import sympy

    return not expression.has(sympy.nan, sympy.zoo)


def _same_constant(one: Any, other: Any) -> bool:
    import sympy

    difference = one - other
    if difference.is_Rational:
        return bool(difference == 0)
    size = abs(one.evalf(15, maxn=1000)) + 1
    value = difference.evalf(_DIGITS, maxn=4 * _DIGITS)
    return value.is_number is True and bool(abs(value) < size * sympy.Rational(1, 10 ** (_DIGITS - 20)))


def _same_function(one: Any, other: Any, unknowns: list[Any]) -> bool:
    """By their values at random points, positive and negative: what agrees at all of them agrees everywhere.

    Only where both are real, if that is anywhere: square roots and logarithms are meant for what they are defined on.
    But nowhere may one be real and the other not: the square root of x^2 is not x. If either has a logarithm of an
    unknown, the points are positive only, as such unknowns are meant to be: ln x^2 is twice ln x.
    """
    import sympy

    margin = sympy.Rational(1, 10 ** (_FEWER_DIGITS - 12))
    exact = all(side.is_rational_function(*unknowns) and _low_powers(side) for side in (one, other))
    both_real: list[bool] = []
    neither_real: list[bool] = []
    logarithms = any(log.free_symbols for side in (one, other) for log in side.atoms(sympy.log))
    for point in _points(len(unknowns), only_positive=logarithms):
        where = dict(zip(unknowns, point, strict=True))
        if exact:
            left, right = one.xreplace(where), other.xreplace(where)
            if left.is_Rational and right.is_Rational:
                both_real.append(left == right)
                continue
        left, right = (side.evalf(_FEWER_DIGITS, subs=where, maxn=4 * _FEWER_DIGITS) for side in (one, other))
        if not (left.is_number and right.is_number and left.is_finite and right.is_finite):
            continue
        real = [abs(sympy.im(value)) <= abs(value) * margin for value in (left, right)]
        if real[0] != real[1]:
            return False
        near = bool(abs(left - right) <= (abs(left) + abs(right)) * margin)
        (both_real if real[0] else neither_real).append(near)
    decisive = both_real or neither_real
    return bool(decisive) and all(decisive)


def _low_powers(expression: Any) -> bool:
    import sympy

    return all(abs(power.exp) <= _HIGHEST_POWER for power in expression.atoms(sympy.Pow) if power.exp.is_Integer)


def _points(width: int, *, only_positive: bool) -> list[list[Any]]:
    """Always the same points: half of them positive, the others of both signs unless positive, too."""
    import random

    import sympy

    rng = random.Random(0)
    points = []
    for index in range(_POINTS):
        signs = (1,) if index % 2 or only_positive else (-1, 1)
        points.append([rng.choice(signs) * sympy.Rational(rng.randint(100, 4000), 997) for _ in range(width)])
    return points
