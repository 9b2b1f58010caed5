"""Whether two answers that have been read are the same answer."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from spo_core.verify.equality import proportional, same_value
from spo_core.verify.nodes import (
    Amount,
    Clock,
    Equation,
    Grid,
    Group,
    Inequality,
    Letter,
    Node,
    Region,
    Several,
    Value,
)  # fmt: skip
from spo_core.verify.quantities import DEGREES, PERCENT, agree
from spo_core.verify.regions import as_region
from spo_core.verify.structures import read


def same(one: Node, other: Node) -> bool:
    """Each rule is for two kinds of answer, in whichever order they come."""
    if one == other and not isinstance(one, Value | Amount | Letter | Equation | Several | Group | Grid):
        return True
    return _same(one, other) or (type(one) is not type(other) and _same(other, one))


def _same(one: Node, other: Node) -> bool:
    match one, other:
        case Several(), _:
            return _same_several(one, other)
        case _, Several():
            return False  # the other way round
        case Equation(), Equation():
            return _same_equation(one, other)
        case Equation(), _:
            answer = _answer(one)
            return answer is not None and same(answer, other)
        case Letter(), Letter():
            return one.name.casefold() == other.name.casefold()
        case Letter(), Value() | Amount() if one.text:
            return same(read(one.text), other)
        case Letter(), Value():
            return one.value is not None and same_value(one.value, other.value)
        case Value(), Value():
            return same_value(one.value, other.value)
        case Amount(), Amount():
            return agree(one.unit, other.unit) and same_value(one.value, other.value)
        case Amount(), Value():
            return _same_amount(one, other)
        case Clock(), Clock():
            return (one.hour, one.minute) == (other.hour, other.minute) and agree(one.half or None, other.half or None)
        case Clock(), Value():
            return bool(one.half) and not one.minute and same_value(other.value, Fraction(one.hour))
        case Group(), Group():
            return (one.left, one.right) == (other.left, other.right) and _same_items(one.items, other.items)
        case Group(), Grid():
            column = [row[0] for row in other.rows]
            return one.left in ("(", r"\langle") and len(other.rows[0]) == 1 and _same_items(one.items, column)
        case Grid(), Grid():
            return len(one.rows) == len(other.rows) and all(map(_same_items, one.rows, other.rows))
        case Region(), _:
            points = as_region(other)
            unknown = other.unknown if isinstance(other, Region) else None
            return points is not None and agree(one.unknown, unknown) and _same_points(one.points, points)
        case Inequality(), Inequality():
            ratio = proportional(one.difference, other.difference)
            return one.strict == other.strict and ratio is not None and bool(ratio.is_positive)
    return False


def _same_items(one: Sequence[Node], other: Sequence[Node]) -> bool:
    return len(one) == len(other) and all(map(same, one, other))


def _same_several(one: Several, other: Node) -> bool:
    r"""In order, if both are mere lists; ``{1,2}``, "1 or 2" and ``\pm 2`` have none, nor have equations."""
    if isinstance(other, Region):
        points = as_region(one)
        return points is not None and _same_points(points, other.points)
    names = [item.name for item in one.items if isinstance(item, Equation) and item.name]
    assigned = len(names) == len(one.items) and len(set(names)) == len(names)
    if isinstance(other, Equation) and isinstance(_answer(other), Group):  # (x,y) = (1,2)
        other = other.values()[-1]
    if isinstance(other, Group):  # x = 1, y = 2 is the point (1,2)
        return assigned and names == sorted(names) and other.left == "(" and _same_items(one.items, other.items)
    items = other.items if isinstance(other, Several) else (other,)
    equations = all(isinstance(item, Equation) for item in (*one.items, *items))
    if one.ordered and not (isinstance(other, Several) and not other.ordered) and not equations:
        return _same_items(one.items, items)
    return _covers(one.items, items) and _covers(items, one.items)


def _covers(these: Sequence[Node], those: Sequence[Node]) -> bool:
    return all(any(same(this, that) for that in those) for this in these)


def _same_amount(amount: Amount, bare: Value) -> bool:
    """A unit may be left out, a percent sign too: 5% is 5 or exactly 0.05, a right angle 90 or pi/2."""
    if amount.unit == PERCENT and same_value(amount.value / 100, bare.value):
        return True
    if amount.unit == PERCENT and isinstance(amount.value, Fraction) and abs(amount.value) < 1:
        return False  # 0.5 is rather a half than half a percent
    if same_value(amount.value, bare.value):
        return True
    if amount.product is not None and same_value(amount.product, bare.value):
        return True
    if amount.unit == DEGREES:
        import sympy

        return same_value(amount.value * Fraction(1, 180), bare.value / sympy.pi)
    return False


def _answer(equation: Equation) -> Node | None:
    """What an equation says something is: 5 in ``x = 5``, in ``2 + 3 = 5`` and in ``x = 2 + 3 = 5``."""
    values = equation.values()
    if equation.name is None and len(values) < 2:
        return None
    return values[-1] if all(same(value, values[-1]) for value in values[:-1]) else None


def _same_equation(one: Equation, other: Equation) -> bool:
    """The same names of the same answers; otherwise equal up to a constant factor."""
    labelled = not (one.names_a_variable() and other.names_a_variable())
    if one.name and other.name and (one.name == other.name or labelled):
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


def _difference(equation: Equation) -> Any | None:
    """Left side less right side."""
    if len(equation.sides) != 2:
        return None
    left, right = (side.value if isinstance(side, Value | Letter) else None for side in equation.sides)
    return None if left is None or right is None else left - right


def _same_points(one: Any, other: Any) -> bool:
    return one == other or ((one - other).is_empty is True and (other - one).is_empty is True)
