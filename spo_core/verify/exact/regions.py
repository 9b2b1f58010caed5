"""Sets of real numbers: intervals, unions, and what inequalities in one unknown hold for."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from spo_core.verify.exact.expressions import read_expression
from spo_core.verify.exact.nodes import NOTHING, Group, Inequality, Node, Region, Several, Value


def inequality(sides: list[str], signs: list[str]) -> Node | None:
    import sympy

    values = [_sympified(read_expression(side)) for side in sides]
    if any(value is None for value in values):
        return None
    unknowns = sorted(set().union(*(value.free_symbols for value in values)), key=str)
    if len(unknowns) == 1:
        points = sympy.S.Reals
        for left, sign, right in zip(values, signs, values[1:], strict=False):
            points = points.intersect(_solutions(left, sign, right, unknowns[0]))
        return Region(points, str(unknowns[0]))
    if len(signs) == 1 and unknowns and signs[0] != r"\neq":
        difference = values[0] - values[1]
        return Inequality(-difference if signs[0] in ("<", r"\leq") else difference, strict=signs[0] in "<>")
    return None


def _solutions(left: Any, sign: str, right: Any, unknown: Any) -> Any:
    """The real numbers for which the inequality holds."""
    import sympy

    if right == unknown:
        turned = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq"}
        left, sign, right = right, turned.get(sign, sign), left
    infinity = sympy.oo
    if left == unknown and right.is_real:  # quickly, what sympy would find, too
        if sign in ("<", r"\leq"):
            return sympy.Interval(-infinity, right, True, sign == "<")
        if sign in (">", r"\geq"):
            return sympy.Interval(right, infinity, sign == ">", True)
        return sympy.S.Reals - sympy.FiniteSet(right)
    kinds = {"<": sympy.Lt, ">": sympy.Gt, r"\leq": sympy.Le, r"\geq": sympy.Ge, r"\neq": sympy.Ne}
    real = sympy.Symbol("x", real=True)
    relation = kinds[sign](left.subs(unknown, real), right.subs(unknown, real))
    if relation in (sympy.true, sympy.false):
        return sympy.S.Reals if relation else sympy.S.EmptySet
    return relation.as_set()


def of_any_unknown(sign: str, bound: str) -> Node | None:
    """``> 5``, said of an unknown that is not named."""
    node = inequality(["x", bound], [sign])
    return Region(node.points) if isinstance(node, Region) and node.unknown == "x" and "x" not in bound else None


def joined_regions(nodes: list[Node], joints: list[str]) -> Node | None:
    import sympy

    regions = [node for node in nodes if isinstance(node, Region)]
    unknowns = {region.unknown for region in regions}
    if len(set(joints)) > 1 or len(unknowns) > 1:
        return None
    join = sympy.Union if joints[0] == "or" else sympy.Intersection
    return Region(join(*(region.points for region in regions)), unknowns.pop())


def as_region(node: Node) -> Any | None:
    """The set of real numbers that ``node`` is, or can be taken for."""
    import sympy

    if isinstance(node, Region):
        return node.points
    if node == NOTHING:
        return sympy.S.EmptySet
    if isinstance(node, Group) and len(node.items) == 2 and node.left in "([" and node.right in ")]":
        ends = [_sympified(item.value) for item in node.items if isinstance(item, Value)]
        if len(ends) < 2 or not all(end.is_extended_real for end in ends) or not ends[0] < ends[1]:
            return None
        return sympy.Interval(*ends, node.left == "(", node.right == ")")
    if isinstance(node, Several) and not node.ordered:
        if all(isinstance(item, Value) for item in node.items):
            return sympy.FiniteSet(*(_sympified(item.value) for item in node.items if isinstance(item, Value)))
        regions = [as_region(item) for item in node.items]
        return None if any(region is None for region in regions) else sympy.Union(*regions)
    return None


def _sympified(value: Any) -> Any:
    """A sympy number of a ``Fraction``."""
    import sympy

    return sympy.Rational(value.numerator, value.denominator) if isinstance(value, Fraction) else value
