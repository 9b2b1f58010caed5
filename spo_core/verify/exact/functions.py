"""The functions that an expression may name, and their sympy forms."""

from __future__ import annotations

from typing import Any

from spo_core.verify.exact.huge import LARGEST_FACTORIAL, factorial, power
from spo_core.verify.exact.tokens import Unreadable

_TRIGONOMETRIC = ("sin", "cos", "tan", "cot", "sec", "csc")
_HYPERBOLIC = ("sinh", "cosh", "tanh", "coth", "sech", "csch")
PREFIXED = {
    **{name: name for name in (*_TRIGONOMETRIC, *_HYPERBOLIC, "arg")},
    **{f"arc{name}": f"a{name}" for name in _TRIGONOMETRIC},
    **{f"{start}{name}": f"a{name}" for name in ("sinh", "cosh", "tanh") for start in ("ar", "arc")},
    "ln": "log", "log": "log", "exp": "exp", "cis": "cis", "sgn": "sign", "Re": "re", "Im": "im",
}  # fmt: skip
"""Functions whose argument needs no brackets, ``sin 2x``; with sympy's names."""
CALLED = {"abs": "Abs", "factorial": "factorial", "floor": "floor", "ceil": "ceiling", "cbrt": "cbrt", "norm": "Abs"}
"""Functions whose argument stands in brackets or braces."""
OF_SEVERAL = {"gcd": "GreatestDivisor", "lcm": "LeastMultiple", "max": "Max", "min": "Min"}
INVERSES = {name: f"arc{name}" for name in (*_TRIGONOMETRIC, "sinh", "cosh", "tanh")}
"""Names of inverse functions, as for ``sin^{-1}``."""


def applied(name: str, argument: Any, base: Any | None = None) -> Any:
    """The function ``name`` of one argument; ``base`` is a logarithm's, 10 where it has none."""
    import sympy

    if name == "log":
        return sympy.log(argument, 10 if base is None else base)
    if name == "cis":
        return sympy.cos(argument) + sympy.I * sympy.sin(argument)
    if name == "cbrt":
        return power(argument, sympy.Rational(1, 3))
    if name == "factorial":
        return factorial(argument)
    return getattr(sympy, (PREFIXED | CALLED)[name])(argument)


def of_several(name: str, values: list[Any]) -> Any:
    """The function ``name`` of several arguments, whose order matters for C and P only. Raises Unreadable for fewer
    than two."""
    import sympy

    if len(values) < 2:
        raise Unreadable
    if name in ("C", "P"):
        above, below = values
        if above.is_number and not abs(above) <= 10 * LARGEST_FACTORIAL:
            raise Unreadable
        return sympy.binomial(above, below) if name == "C" else sympy.ff(above, below)
    if name in ("max", "min"):
        return getattr(sympy, OF_SEVERAL[name])(*values)
    if all(value.is_Integer for value in values):
        return sympy.Integer(getattr(sympy, "igcd" if name == "gcd" else "ilcm")(*values))
    if any(value.is_number and not value.is_Integer for value in values):
        raise Unreadable
    return sympy.Function(OF_SEVERAL[name])(*sorted(values, key=str))
