r"""Reads relations: equations and their names, inequalities, approximations, membership."""

from __future__ import annotations

import re

from spo_core.verify.exact.names import is_measured, is_name
from spo_core.verify.exact.nodes import (
    SIMPLE_NAME,
    VARIABLE,
    Amount,
    Answer,
    Based,
    Equation,
    Group,
    Letter,
    Read,
    Region,
    Residue,
    Several,
    Value,
    Words,
)  # fmt: skip
from spo_core.verify.exact.sets import as_region, inequality, of_any_unknown
from spo_core.verify.exact.tokens import split

_RELATION = re.compile(r"=|<|>|\\(?:leq|geq|neq|approx)(?![a-zA-Z])")
_IDENTICAL = re.compile(r"^([a-zA-Z]\([a-z]\))\\equiv(?![a-zA-Z])")
_MEMBER = re.compile(r"\\(?:in|notin)(?![a-zA-Z])")
_IMPLIES = re.compile(r"\\Rightarrow(?![a-zA-Z])")


def read_implication(text: str, read: Read) -> Answer | None:
    r"""Read the last part of ``2x = 10 \Rightarrow x = 5``; None for text without implication."""
    parts, signs = split(text, _IMPLIES)
    return read(parts[-1]) if signs and parts[-1] else None


def read_member(text: str, read: Read) -> Answer | None:
    import sympy

    sides, signs = split(text, _MEMBER)
    if len(signs) != 1 or not re.fullmatch(rf"{VARIABLE}|\({VARIABLE}(?:,{VARIABLE})+\)", sides[0]):
        return None
    node = read(re.sub(r"^\{(.+)\}$", r"\\{\1\\}", sides[1]))
    region = as_region(node)
    if signs[0] == r"\notin":
        return None if region is None else Region(sympy.S.Reals - region, sides[0])
    if isinstance(node, Several):
        return node
    return None if region is None else Region(region, sides[0])


def read_relation(text: str, read: Read) -> Answer | None:
    text = _IDENTICAL.sub(r"\1=", text) if "mod" not in text else text  # f(x)\equiv 0
    sides, signs = split(text, _RELATION)
    if not signs:
        return None
    if not sides[0] and signs[0] in ("=", r"\approx"):
        return read(text[len(signs[0]) :].strip())
    if not sides[0] and len(signs) == 1:
        return of_any_unknown(signs[0], sides[1])
    if not all(sides):
        return None
    if all(sign == "=" for sign in signs):
        return _equation(sides, read)
    if r"\approx" in signs:
        return _approximation(sides, signs, read)
    return None if "=" in signs else inequality(sides, signs)


def _approximation(sides: list[str], signs: list[str], read: Read) -> Answer | None:
    r"""Read ``x \approx 3.14`` as 3.14, and of ``\frac{22}{7} \approx 3.14`` only the exact part."""
    if signs[-1] != r"\approx" or signs.count(r"\approx") > 1:
        return None
    if len(sides) == 2 and is_name(sides[0]):
        return _equation(sides, read)
    exact = read("=".join(sides[:-1]))
    value = exact.sides[-1] if isinstance(exact, Equation) else exact
    rounded = read(sides[-1])
    if not (isinstance(value, Value) and isinstance(rounded, Value)):
        return None
    try:
        near = abs(float(value.value) - float(rounded.value)) <= 0.01 * abs(float(value.value))
    except (TypeError, ValueError, OverflowError):
        return None
    return exact if near else None


def _equation(sides: list[str], read: Read) -> Answer | None:
    while len(sides) > 2 and is_measured(sides[0]) and is_measured(sides[1]):
        sides = sides[1:]  # AB = CD = 5
    read_sides = [read(side) for side in sides]
    nodes = tuple(
        Value(node.product) if isinstance(node, Words) and node.product is not None else node for node in read_sides
    )
    for named in (0, len(sides) - 1):
        others = nodes[1:] if named == 0 else nodes[:-1]
        if named and not SIMPLE_NAME.fullmatch(sides[named]) and isinstance(nodes[0], Letter):
            continue  # in "y = ax" ax is not a name of y
        if is_name(sides[named]) and not any(isinstance(node, Words) for node in others):
            if len(nodes) == 2 and isinstance(others[0], Several):  # x = {1,2}: x is 1 or 2
                each = [(nodes[0], item) if named == 0 else (item, nodes[1]) for item in others[0].items]
                return Several(tuple(Equation(pair, sides[named], named) for pair in each), ordered=False)
            return Equation(nodes, sides[named], named)
    kinds = (Value, Amount, Letter, Group, Residue, Based)
    return Equation(nodes) if all(isinstance(node, kinds) for node in nodes) else None
