r"""Reads sets of numbers: ``\mathbb{R}``, intervals, unions, builders, solutions of inequalities in one unknown."""

from __future__ import annotations

import re
from typing import Any

from spo_core.verify.exact.equality import to_sympy
from spo_core.verify.exact.expressions import read_expression
from spo_core.verify.exact.nodes import (
    NOTHING,
    VARIABLE,
    Answer,
    Equation,
    Group,
    Inequality,
    Read,
    Region,
    Several,
    Value,
)
from spo_core.verify.exact.tokens import split

_SIGN = r"(?:\^\{?(?P<{0}>[+\-*])\}?|_\{{?(?P<{0}b>[+\-]|(?:>|<|\\geq|\\leq|\\neq)0)\}?)*"
_BLACKBOARD = re.compile(
    r"\\mathbb ?(?:\{([RZNQC])\}|([RZNQC]))((?:\^\{?[+*-]\}?|_\{?(?:[+-]|(?:>|<|\\geq|\\leq|\\neq)0|0)\}?)*)"
)
_KINDS = "real|integer|natural|rational|whole|complex"
_NAMED = re.compile(
    rf"(?:{VARIABLE}(?: is|\\in| can be|:)? ?)?(?:(?:the )?set of )?(?:all |any |every |the )?(?:the )?"
    rf"(?P<sign>positive |negative |non-?negative |non-?positive |non-?zero )?"
    rf"(?P<kind>{_KINDS})s?(?: numbers?| values?| solutions?)?"
    rf"(?: ?(?:of )?(?P<letter>{VARIABLE}))?"
    r"(?:,? ?(?P<but>except(?: for)?|excluding|besides|other than|but|not equal to|greater than|less than|"
    r"such that|where|with|\\neq(?![a-z])) ?(?P<rest>.+))?",
    re.IGNORECASE,
)
_MEMBER = re.compile(rf"({VARIABLE}) ?\\in ?(.+)")
_PARTS = re.compile(r", ?|;|\\text\{ ?and ?\}|(?<![a-z\\])and(?![a-z])|\\&")
_BAR = re.compile(r"[|:]")


def inequality(sides: list[str], signs: list[str]) -> Answer | None:
    import sympy

    values = [to_sympy(read_expression(side)) for side in sides]
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
    if left == unknown and right.is_real:  # a shortcut: sympy would find the same
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


def of_any_unknown(sign: str, bound: str) -> Answer | None:
    """Read ``> 5``, the solutions for an unknown that is not named."""
    node = inequality(["x", bound], [sign])
    return Region(node.points) if isinstance(node, Region) and node.unknown == "x" and "x" not in bound else None


def joined_regions(nodes: list[Answer], joints: list[str]) -> Answer | None:
    import sympy

    regions = [region for region in map(as_said_region, nodes) if region is not None]
    unknowns = {region.unknown for region in regions}
    if len(set(joints)) > 1 or len(unknowns) > 1 or len(regions) < len(nodes):
        return None
    join = sympy.Union if joints[0] == "or" else sympy.Intersection
    return Region(join(*(region.points for region in regions)), unknowns.pop())


def side_by_side(nodes: list[Answer]) -> Answer | None:
    """Join regions in a list: ``x > 1, x < 2`` both hold; ``x < 1, x > 2``, which no number meets, are two answers."""
    both = joined_regions(nodes, ["and"])
    return joined_regions(nodes, ["or"]) if isinstance(both, Region) and both.points.is_empty else both


def as_said_region(node: Answer) -> Region | None:
    """A region as it is, and ``x = 1`` as a region of a single number; None for any other answer."""
    import sympy

    if isinstance(node, Region):
        return node
    if isinstance(node, Equation) and node.name and node.names_a_variable() and len(node.sides) == 2:
        value = node.values()[0]
        if isinstance(value, Value) and to_sympy(value.value).is_real:
            return Region(sympy.FiniteSet(to_sympy(value.value)), node.name)
    return None


def named_set(text: str) -> Any | None:
    r"""The set that ``\mathbb{Z}^{+}`` or "all real numbers except 3" names."""
    import sympy

    if match := _BLACKBOARD.fullmatch(text):
        base = {"R": sympy.S.Reals, "Z": sympy.S.Integers, "N": sympy.S.Naturals, "Q": sympy.S.Rationals,
                "C": sympy.S.Complexes}[match[1] or match[2]]  # fmt: skip
        return _narrowed(base, re.sub(r"[\^_{}\\]", "", match[3]))
    if not re.search(_KINDS, text, re.IGNORECASE):
        return None
    flat = " ".join(re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).split())
    match = _NAMED.fullmatch(flat)
    if not match or not (re.search(r"s\b|\b(?:all|any|every) ", flat, re.IGNORECASE)):
        return None
    base = {"real": sympy.S.Reals, "integer": sympy.S.Integers, "natural": sympy.S.Naturals,
            "rational": sympy.S.Rationals, "whole": sympy.S.Naturals0,
            "complex": sympy.S.Complexes}[match["kind"].lower()]  # fmt: skip
    sign = (match["sign"] or "").strip().lower().replace("-", "")
    points = _narrowed(base, {"positive": "+", "negative": "-", "nonzero": "*", "nonnegative": "geq0",
                              "nonpositive": "leq0"}.get(sign, ""))  # fmt: skip
    if not match["but"]:
        return points
    return _less(points, match["but"].lower(), match["rest"])


def _narrowed(points: Any, sign: str) -> Any:
    import sympy

    zero, infinity = sympy.S.Zero, sympy.oo
    for name, part in {
        "geq0": sympy.Interval(zero, infinity), "leq0": sympy.Interval(-infinity, zero),
        "neq0": sympy.S.Reals - sympy.FiniteSet(zero), ">0": sympy.Interval.open(zero, infinity),
        "<0": sympy.Interval.open(-infinity, zero), "+": sympy.Interval.open(zero, infinity),
        "-": sympy.Interval.open(-infinity, zero), "*": sympy.S.Reals - sympy.FiniteSet(zero),
    }.items():  # fmt: skip
        if sign == name:
            return points.intersect(part)
    if sign == "0" and points == sympy.S.Naturals:
        return sympy.S.Naturals0
    return None if sign else points


def _less(points: Any, word: str, rest: str) -> Any | None:
    import sympy

    if word in ("such that", "where", "with"):
        sides = re.split(r"(<|>|\\leq(?![a-z])|\\geq(?![a-z])|\\neq(?![a-z]))", rest)
        region = inequality(sides[::2], sides[1::2]) if len(sides) > 1 else None
        return points.intersect(region.points) if isinstance(region, Region) else None
    numbers = [re.sub(rf"^{VARIABLE} ?= ?", "", part) for part in split(rest, _PARTS)[0]]
    values = [to_sympy(value) for value in map(read_expression, numbers) if value is not None]
    if len(values) != len(numbers) or not all(value.is_real for value in values):
        return None
    if word in ("greater than", "less than"):
        bound = (
            sympy.Interval.open(values[0], sympy.oo) if word[0] == "g" else sympy.Interval.open(-sympy.oo, values[0])
        )
        return points.intersect(bound) if len(values) == 1 else None
    return points - sympy.FiniteSet(*values)


def read_builder(inside: str, read: Read) -> Answer | None:
    r"""Read the inside of the braces of ``\{x\in\mathbb{Z} | 1\leq x\leq 3\}``; None where that is no builder."""
    import sympy

    (first, *rest), bars = split(inside, _BAR)
    if not bars or not first:
        return None
    said = "".join(part for pair in zip(["", *bars[1:]], rest, strict=True) for part in pair)  # put back bars of |x|
    member = _MEMBER.fullmatch(first)
    name = member[1] if member else first
    if not re.fullmatch(VARIABLE, name):
        return None
    points: Any = None
    for condition in ([first] if member else []) + split(said, _PARTS)[0]:
        inner = _MEMBER.fullmatch(condition)
        region = named_set(inner[2]) if inner and inner[1] == name else None
        if region is None:
            node = read(condition)
            region = node.points if isinstance(node, Region) and node.unknown in (name, None) else None
            if region is None and (one := as_said_region(node)) and one.unknown == name:
                region = one.points
        if region is None:
            return None
        points = region if points is None else points.intersect(region)
    if points is not None and points.is_subset(sympy.S.Integers) and (listed := _listed(points)) is not None:
        return listed
    return Region(points)


def whole_numbers(region: Region, which: str) -> Answer:
    """The whole numbers of a region; ``which`` is Z, or N for those above 0."""
    import sympy

    points = region.points.intersect(sympy.S.Naturals if which == "N" else sympy.S.Integers)
    listed = _listed(points)
    return listed if listed is not None else Region(points, region.unknown)


def _listed(points: Any) -> Several | None:
    """The numbers of a small set, as an unordered list; None for a large one."""
    import sympy

    if isinstance(points, sympy.Range) and points.size.is_finite and points.size <= _MOST_LISTED:
        points = sympy.FiniteSet(*points)
    if isinstance(points, sympy.FiniteSet) and len(points) <= _MOST_LISTED:
        return Several(
            tuple(Value(point) for point in sorted(points, key=lambda point: point.sort_key())), ordered=False
        )
    return None


_MOST_LISTED = 100


def as_region(node: Answer) -> Any | None:
    """The set of real numbers that ``node`` is or can be taken for; None where there is none."""
    import sympy

    if isinstance(node, Region):
        return node.points
    if node == NOTHING:
        return sympy.S.EmptySet
    if isinstance(node, Group) and len(node.items) == 2 and node.left in "([" and node.right in ")]":
        ends = [to_sympy(item.value) for item in node.items if isinstance(item, Value)]
        if len(ends) < 2 or not all(end.is_extended_real for end in ends) or not ends[0] < ends[1]:
            return None
        return sympy.Interval(*ends, node.left == "(", node.right == ")")
    if isinstance(node, Several) and not node.ordered:
        if all(isinstance(item, Value) for item in node.items):
            return sympy.FiniteSet(*(to_sympy(item.value) for item in node.items if isinstance(item, Value)))
        regions = [as_region(item) for item in node.items]
        return None if any(region is None for region in regions) else sympy.Union(*regions)
    return None
