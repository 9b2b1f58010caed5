r"""Powers and factorials: computed where they are small, else kept as symbols that still cancel.

``2^{10^6}`` becomes the symbol of 2 to the power 10^6, so that ``4^{500000}`` is the same and ``2^{10^6}+1`` is not.
"""

from __future__ import annotations

import math
from typing import Any

from spo_core.verify.exact.tokens import Unreadable

LARGEST_FACTORIAL = 3000
_MOST_BITS = 200_000  # size of a power that is computed
_LARGEST_BASE = 10**12  # base of a power that is kept as a symbol
_APART = 5000  # largest difference of exponents or factorials whose quotient is computed
_PRIME, _FACTORIAL = "prime ", "factorial "


def power(base: Any, exponent: Any) -> Any:
    """base ** exponent; odd roots of negative numbers are real, as at school. Raises Unreadable if too large."""
    import sympy

    if base.is_number and exponent.is_number and base not in (0, 1, -1, sympy.E):
        if not exponent.is_real:
            bits = 0.0
        elif base.is_Rational:
            bits = abs(float(exponent)) * (math.log2(abs(base.p)) + math.log2(base.q))
        else:
            bits = 64 * abs(float(exponent))
        if not bits <= _MOST_BITS:
            return _kept(base, exponent)
        if base.is_Rational and not exponent.is_integer and max(abs(base.p), base.q).bit_length() > 4000:
            raise Unreadable
    if base.is_Rational and base < 0 and exponent.is_Rational and exponent.q % 2 and exponent.q > 1:
        return (-1) ** exponent.p * (-base) ** exponent
    return base**exponent


def _kept(base: Any, exponent: Any) -> Any:
    import sympy

    if not (base.is_Rational and base > 0 and exponent.is_Rational and max(base.p, base.q) <= _LARGEST_BASE):
        raise Unreadable
    factors = [
        sympy.Symbol(f"{_PRIME}{prime}", positive=True) ** (sign * times * exponent)
        for sign, whole in ((1, base.p), (-1, base.q))
        for prime, times in sympy.factorint(whole).items()
    ]
    return sympy.Mul(*factors)


def factorial(value: Any, step: int = 1) -> Any:
    """``n!``, or with step 2 ``n!!``; a large ``n!`` is a symbol. Raises Unreadable if undefined or too large."""
    import sympy

    if value.is_number and not (value.is_Integer and value >= 0):
        raise Unreadable
    if step == 1 and value.is_Integer and value > LARGEST_FACTORIAL:
        if value.p.bit_length() > 400:
            raise Unreadable
        return sympy.Symbol(f"{_FACTORIAL}{value}", positive=True)
    if value.is_Integer and value > LARGEST_FACTORIAL:
        raise Unreadable
    return sympy.factorial(value) if step == 1 else sympy.factorial2(value)


def is_huge(expression: Any) -> bool:
    return any(symbol.name.startswith((_PRIME, _FACTORIAL)) for symbol in expression.free_symbols)


def same_huge(one: Any, other: Any) -> bool:
    """Whether two expressions with such symbols are the same number: whether their difference is 0 once the factors
    that all its terms share are divided out."""
    import sympy

    terms = [term.as_powers_dict() for term in sympy.Add.make_args(sympy.expand(one - other))]
    symbols = {symbol for term in terms for symbol in term if symbol.is_Symbol}
    total: Any = 0
    if not all(symbol.name.startswith((_PRIME, _FACTORIAL)) for symbol in symbols):
        return len(terms) == 1 and terms[0] == {sympy.Integer(0): 1}
    least = {
        symbol: min(term.get(symbol, sympy.S.Zero) for term in terms) for symbol in symbols if _PRIME in symbol.name
    }
    factorials = sorted((int(s.name.removeprefix(_FACTORIAL)), s) for s in symbols if _FACTORIAL in s.name)
    for term in terms:
        value: Any = sympy.Integer(1)
        for base, exponent in term.items():
            if not base.is_Symbol:
                value *= base**exponent
            elif base in least:
                continue
            else:
                number = int(base.name.removeprefix(_FACTORIAL))
                lower = next(n for n, _ in factorials if number - n <= _APART)
                if not exponent.is_Integer or abs(exponent) * (number - lower) > _APART:
                    return False
                value *= sympy.prod(range(lower + 1, number + 1)) ** exponent
                value *= sympy.Symbol(f"{_FACTORIAL}{lower}") ** exponent
        for symbol, low in least.items():
            above = term.get(symbol, sympy.S.Zero) - low
            if not (above.is_Rational and above <= _APART):
                return False
            value *= sympy.Integer(symbol.name.removeprefix(_PRIME)) ** above
        total += value
    return bool(sympy.expand(total) == 0)
