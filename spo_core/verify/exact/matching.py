"""Decides whether two answers that have been read are the same answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from spo_core.verify.exact.equality import proportional, same_value, to_sympy
from spo_core.verify.exact.families import mapped, same_family
from spo_core.verify.exact.names import FUNCTION, INDEXED, names_agree
from spo_core.verify.exact.nodes import (
    Amount,
    Answer,
    Based,
    Clock,
    Equation,
    Grid,
    Group,
    Inequality,
    Letter,
    Ratio,
    Region,
    Residue,
    Several,
    Value,
    Words,
)  # fmt: skip
from spo_core.verify.exact.sets import as_region
from spo_core.verify.exact.structures import read
from spo_core.verify.exact.units import DEGREES, PERCENT, agree

_CHOICES = "ABCDEFGHIJabcdefghij"


def same_answer(one: Answer, other: Answer) -> bool:
    """Compare as ``same`` does, ignoring case where the whole answer is one letter or a list of choices."""
    return same(_folded(one), _folded(other))


def _folded(node: Answer) -> Answer:
    if isinstance(node, Letter):
        return Letter(node.name.casefold(), node.value, node.text)
    if isinstance(node, Several) and all(isinstance(item, Letter) and item.name in _CHOICES for item in node.items):
        return Several(tuple(map(_folded, node.items)), node.ordered)
    return node


def same(one: Answer, other: Answer) -> bool:
    """Whether two answers are the same, by a rule for their two kinds, in either order."""
    if one == other and not isinstance(one, Value | Amount | Letter | Equation | Several | Group | Grid):
        return True
    return _same(one, other) or (type(one) is not type(other) and _same(other, one))


def _same(one: Answer, other: Answer) -> bool:
    match one, other:
        case Several(), _:
            return _same_several(one, other)
        case _, Several():
            return False  # decided with the two exchanged
        case Equation(), Equation():
            return _same_equation(one, other)
        case Equation(), Residue() if other.unknown and one.names_a_variable() and one.name != other.unknown:
            return False
        case Equation(), Based():
            return _answer(one) is not None and other in one.sides
        case Equation(), _:
            answer = _answer(one)
            return answer is not None and same(answer, other)
        case Letter(), Letter():
            return one.name == other.name
        case Letter(), Value() | Amount() if one.text:
            return same(read(one.text), other)
        case Letter(), Value():
            return one.value is not None and same_value(one.value, other.value)
        case Value(), Value():
            family = same_family(one.value, other.value)
            return same_value(one.value, other.value) if family is None else family
        case Amount(), Amount():
            return agree(one.unit, other.unit) and same_value(one.value, other.value)
        case Amount(), Value():
            return _same_amount(one, other)
        case Clock(), Clock():
            return (one.hour, one.minute) == (other.hour, other.minute) and _agree(one.half, other.half)
        case Clock(), Value():
            return bool(one.half) and not one.minute and same_value(other.value, Fraction(one.hour))
        case Words(), Words():
            return one.key == other.key and _agree(one.sign, other.sign)
        case Words(), Value():
            return one.product is not None and same_value(one.product, other.value)
        case Residue(), Residue():
            numbers = (one.value, one.modulus) == (other.value, other.modulus)
            return numbers and _agree(one.unknown, other.unknown)
        case Residue(), Value():
            return 0 <= one.value < one.modulus and same_value(one.value, other.value)
        case Group(), Group():
            return _brackets(one) == _brackets(other) and _same_items(one.items, other.items)
        case Group(), Grid():
            vector = [cell for row in other.rows for cell in row]
            tuple_like = one.left in ("(", r"\langle") or ((one.left, one.right) == ("[", "]") and len(vector) > 2)
            return tuple_like and 1 in (len(other.rows), len(other.rows[0])) and _same_items(one.items, vector)
        case ((Group() | Grid()), Value()):
            return _same_vector(one, other.value)
        case Grid(), Grid():
            if one.unordered:
                cases = one.rows, other.rows
                return len(cases[0]) == len(cases[1]) and all(
                    any(_same_items(a, b) for b in cases[1]) for a in cases[0]
                )
            return len(one.rows) == len(other.rows) and all(map(_same_items, one.rows, other.rows))
        case Ratio(), Ratio():
            return _same_ratio(one.terms, other.terms)
        case Ratio(), Clock() if not other.half:
            return _same_ratio(one.terms, (Fraction(other.hour), Fraction(other.minute)))
        case Region(), _:
            points = as_region(other)
            unknown = other.unknown if isinstance(other, Region) else None
            return points is not None and _agree(one.unknown, unknown) and _same_points(one.points, points)
        case Inequality(), Inequality():
            ratio = proportional(one.difference, other.difference)
            return one.strict == other.strict and ratio is not None and not ratio.imag and bool(ratio.real > 0)
    return False


def _agree(one: str | None, other: str | None) -> bool:
    """Whether two names are the same, or one is missing."""
    return not one or not other or one == other


def _brackets(group: Group) -> tuple[str, str]:
    """The brackets of a group, angle brackets as parentheses."""
    return ("(", ")") if (group.left, group.right) == (r"\langle", r"\rangle") else (group.left, group.right)


def _same_items(one: Sequence[Answer], other: Sequence[Answer]) -> bool:
    return len(one) == len(other) and all(map(same, one, other))


def _same_ratio(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two ratios are the same, as ``4:6`` and ``2:3``."""
    if len(one) != len(other):
        return False
    crossed = [
        (to_sympy(a) * to_sympy(other[0]), to_sympy(b) * to_sympy(one[0])) for a, b in zip(one, other, strict=True)
    ]
    return all(same_value(left, right) for left, right in crossed)


def _same_vector(vector: Group | Grid, value: Any) -> bool:
    r"""Whether ``vector`` is ``value`` in unit vectors, as ``(3,4)`` is ``3\mathbf{i}+4\mathbf{j}``."""
    import sympy

    units = [sympy.Symbol(f"hat {letter}") for letter in "ijk"]
    cells = vector.items if isinstance(vector, Group) else [cell for row in vector.rows for cell in row]
    if not getattr(value, "free_symbols", set()) & set(units) or not 2 <= len(cells) <= 3:
        return False
    if isinstance(vector, Group) and vector.left not in ("(", r"\langle"):
        return False
    if not all(isinstance(cell, Value) for cell in cells) or (isinstance(vector, Grid) and len(vector.rows[0]) > 1):
        return False
    total = sum(to_sympy(cell.value) * unit for cell, unit in zip(cells, units, strict=False))  # type: ignore[union-attr]
    return same_value(total, value)


def _same_several(one: Several, other: Answer) -> bool:
    r"""In order, if both are mere lists; ``{1,2}``, "1 or 2" and ``\pm 2`` have none, nor have equations."""
    if isinstance(other, Region):
        points = as_region(one)
        return points is not None and _same_points(points, other.points)
    if len(one.items) == 1 and not isinstance(other, Several):
        return same(one.items[0], other)
    names = [item.name for item in one.items if isinstance(item, Equation) and item.name]
    assigned = len(names) == len(one.items) and len(set(names)) == len(names)
    if isinstance(other, Equation) and isinstance(_answer(other), Group):  # (x,y) = (1,2)
        other = other.values()[-1]
    if isinstance(other, Group):  # x = 1, y = 2 is the point (1,2)
        by_name = [item for _, item in sorted(zip(names, one.items, strict=False), key=lambda pair: pair[0])]
        return assigned and other.left == "(" and _same_items(by_name, other.items)
    items = other.items if isinstance(other, Several) else (other,)
    equations = all(isinstance(item, Equation) for item in (*one.items, *items))
    if one.ordered and not (isinstance(other, Several) and not other.ordered) and not equations:
        return _same_items(one.items, items)
    return _covers(one.items, items) and _covers(items, one.items)


def _covers(these: Sequence[Answer], those: Sequence[Answer]) -> bool:
    return all(any(same(this, that) for that in those) for this in these)


def _same_amount(amount: Amount, bare: Value) -> bool:
    """Whether an amount is a bare value: units may be left out; 5% is 5 or exactly 0.05, a right angle 90 or pi/2."""
    if amount.product is not None and same_value(amount.product, bare.value):
        return True
    if amount.unit is not None and not amount.unit.sure:
        return False
    if amount.unit == PERCENT and same_value(amount.value / 100, bare.value):
        return True
    if amount.unit == PERCENT and isinstance(amount.value, Fraction) and abs(amount.value) < 1:
        return False  # 0.5 means a half, not half a percent
    if same_value(amount.value, bare.value):
        return True
    if amount.unit == DEGREES:
        import sympy

        return same_value(amount.value * Fraction(1, 180), bare.value / sympy.pi)
    return False


def _answer(equation: Equation) -> Answer | None:
    """The answer that an equation gives: 5 in ``x = 5``, in ``2 + 3 = 5`` and in ``x = 2 + 3 = 5``; else None."""
    values = tuple(map(_number_of, equation.values()))
    if equation.name is None and len(values) < 2:
        return None
    return values[-1] if all(same(value, values[-1]) for value in values[:-1]) else None


def _number_of(node: Answer) -> Answer:
    """Turn a numeral of another base, as a side of an equation, into its value: ``52_8`` into 42."""
    return Value(Fraction(int(node.digits, node.base))) if isinstance(node, Based) and node.digits.isalnum() else node


def _same_equation(one: Equation, other: Equation) -> bool:
    """Whether two equations give the same name the same answer, or are equal up to a constant factor."""
    other = _with_variable_of(one, other)
    if one.name and other.name and names_agree(one.name, other.name):
        answers = _answer(one), _answer(other)
        if answers[0] is not None and answers[1] is not None and same(answers[0], answers[1]):
            return True
    if one.name is None and other.name is None:
        answers = _answer(one), _answer(other)
        if answers[0] is not None and answers[1] is not None:
            return same(answers[0], answers[1])
    differences = _difference(one), _difference(other)
    if differences[0] is None or differences[1] is None:
        return False
    return proportional(*differences) is not None


def _with_variable_of(one: Equation, other: Equation) -> Equation:
    """Rewrite ``f(n) = n+1`` as ``f(x) = x+1`` where ``one`` defines the same function with variable x."""
    import sympy

    wanted, given = (FUNCTION.fullmatch(name or "") or INDEXED.fullmatch(name or "") for name in (one.name, other.name))
    if wanted is None or given is None or wanted[1] != given[1] or wanted[2] == given[2]:
        return other
    new, old = (sympy.Symbol(re.sub(r"[\\{}]", "", function[2])) for function in (wanted, given))
    found = [getattr(getattr(side, "value", None), "free_symbols", ()) for side in other.values()]
    if any(new in symbols for symbols in found) or not any(old in symbols for symbols in found):
        return other
    return replace(mapped(other, {old: new}), name=one.name)


def _difference(equation: Equation) -> Any | None:
    """Left side less right side, times their denominators, so that ``y/x = 2`` is ``y = 2x``; None without values."""
    import sympy

    if len(equation.sides) != 2:
        return None
    left, right = (side.value if isinstance(side, Value | Letter) else None for side in equation.sides)
    if left is None or right is None:
        return None
    difference = to_sympy(left) - to_sympy(right)
    divided = any(power.exp.is_negative and power.base.free_symbols for power in difference.atoms(sympy.Pow))
    return sympy.fraction(sympy.together(difference))[0] if divided else difference


def _same_points(one: Any, other: Any) -> bool:
    return one == other or ((one - other).is_empty is True and (other - one).is_empty is True)
