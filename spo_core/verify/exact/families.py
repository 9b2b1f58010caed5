r"""Compares families of solutions, ``\frac{\pi}{4}+k\pi`` for every integer k, whatever their letter and offset."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

from spo_core.verify.exact.equality import same_value, to_sympy

_MEMBER = "any "
_LETTERS = frozenset("abcdjklmnpqrst")


def as_family(node: Any, letters: list[str], which: str) -> Any:
    """Replace ``letters`` in ``node`` by the symbols of families' members; ``which`` is Z or N."""
    import sympy

    names = {sympy.Symbol(name.lstrip("\\")): sympy.Symbol(f"{_MEMBER}{which} {i}") for i, name in enumerate(letters)}
    return mapped(node, names)


def mapped(node: Any, names: dict[Any, Any]) -> Any:
    """Replace symbols, as ``names`` maps them, in all values of ``node``."""
    if hasattr(node, "xreplace"):
        return node.xreplace(names)
    if isinstance(node, tuple):
        return tuple(mapped(item, names) for item in node)
    if is_dataclass(node) and not isinstance(node, type):
        return replace(node, **{field.name: mapped(getattr(node, field.name), names) for field in fields(node)})
    return node


def _members(value: Any) -> list[Any]:
    symbols = getattr(value, "free_symbols", ())
    return sorted((symbol for symbol in symbols if symbol.name.startswith(_MEMBER)), key=str)


def same_family(one: Any, other: Any) -> bool | None:
    """Whether two values are the same family; None where neither is one."""
    import sympy

    members = _members(one), _members(other)
    if not any(members):
        return None
    one, other = to_sympy(one), to_sympy(other)
    if not all(members):  # one of the two does not say that its letter is an integer
        known, bare = (one, other) if members[0] else (other, one)
        free = [symbol for symbol in bare.free_symbols - known.free_symbols if symbol.name in _LETTERS]
        found = members[0] or members[1]
        if len(free) != 1 or len(found) != 1:
            return False
        one, other = known, bare.xreplace({free[0]: found[0]})
        members = found, found
    if members[0] != members[1]:
        return False
    if same_value(one, other):
        return True
    if len(members[0]) != 1 or not members[0][0].name.startswith(f"{_MEMBER}Z"):
        return False
    letter = members[0][0]
    steps = [sympy.expand(side.xreplace({letter: letter + 1}) - side) for side in (one, other)]
    if any(letter in step.free_symbols for step in steps) or steps[0] == 0:
        return False
    start = sympy.expand((one - other).xreplace({letter: sympy.Integer(0)})) / steps[0]
    return (same_value(steps[0], steps[1]) or same_value(steps[0], -steps[1])) and sympy.simplify(
        start
    ).is_integer is True
