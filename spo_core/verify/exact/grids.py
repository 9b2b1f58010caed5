r"""Reads matrices, vectors, determinants, systems and functions by cases."""

from __future__ import annotations

import re
from typing import Any

from spo_core.verify.exact.equality import to_sympy
from spo_core.verify.exact.expressions import read_expression
from spo_core.verify.exact.nodes import Answer, Grid, Group, Read, Value
from spo_core.verify.exact.spellings import ARRANGED
from spo_core.verify.exact.tokens import split

_MATRIX = re.compile(
    r"(?P<before>[^&]*?)(?P<left>[(\[|]?|\\\{)"
    r"\\begin\{(?P<kind>[pbBvV]?matrix\*?|smallmatrix|array)\}(?:\[[lcr]\]|\{[lcr| ]*\})?"
    r"(?P<inside>.*)\\end\{(?P=kind)\}(?P<right>[)\]|]?|\\\})(?P<behind>\^\{(?:T|\\top|\\intercal|t|\\text\{T\}|\\mathsf\{T\}|-1)\}|'|)"
)
_SYSTEM = re.compile(
    rf"(?:\\\{{)?\\begin\{{(?P<kind>(?:{ARRANGED})\*?)\}}(?:\{{[lcr| ]*\}})?"
    r"(?P<inside>.*)\\end\{(?P=kind)\}(?:\\\})?"
)
_ROW_END = re.compile(r"\\\\(?: ?\[[^\[\]]*\])?|\\cr(?![a-z])")
_TRANSPOSED = re.compile(r"([(\[].*,.*[)\]])\^\{(?:T|\\top|\\intercal|t)\}")
_DOT = re.compile(r"\\cdot(?![a-zA-Z])")
_ENDS = (("", ""), ("(", ")"), ("[", "]"), ("|", "|"), (r"\{", r"\}"))
_MOST_CELLS = 200
_LARGEST = 6  # rows of a determinant


def rows_of(inside: str) -> list[list[str]]:
    """The texts of all cells, row by row."""
    rows = [row for row in _ROW_END.split(inside.strip()) if row.strip()]
    return [[cell.strip() for cell in row.split("&")] for row in rows]


def read_grid(text: str, read: Read) -> Answer | None:
    r"""Read a matrix with a factor, ``\det`` or transpose around it: ``2\begin{pmatrix}...``; else None."""
    match = _MATRIX.fullmatch(text)
    if not match or r"\begin" in match["before"]:
        return None
    cells = rows_of(match["inside"])
    if not cells or len(cells) * len(cells[0]) > _MOST_CELLS or any(not cell for row in cells for cell in row):
        return None
    grid: Answer | None = Grid(tuple(tuple(read(cell) for cell in row) for row in cells))
    assert isinstance(grid, Grid)
    if (match["left"] or "", match["right"] or "") not in _ENDS:
        return None
    kind, bars = match["kind"], match["left"] == "|" == match["right"]
    before = match["before"].removesuffix(r"\cdot").strip()
    if kind.startswith("v") or bars or before.endswith(r"\det"):
        return _determinant(grid, before.removesuffix(r"\det").strip(), match["behind"])
    if match["behind"] == "^{-1}":
        return None
    if match["behind"]:
        if len({len(row) for row in grid.rows}) > 1:
            return None
        grid = Grid(tuple(zip(*grid.rows, strict=True)))
    return scaled(grid, before)


def _determinant(grid: Grid, before: str, behind: str) -> Answer | None:
    import sympy

    values = _values(grid)
    factor = _factor(before)
    if values is None or factor is None or behind or not all(len(row) == len(values) <= _LARGEST for row in values):
        return None
    return Value(factor * sympy.Matrix(values).det())


def _values(grid: Grid) -> list[list[Any]] | None:
    """The cells' values as sympy expressions; None where a cell is no value."""
    values = [[to_sympy(getattr(cell, "value", None)) for cell in row] for row in grid.rows]
    return None if any(value is None for row in values for value in row) else values


def _factor(text: str) -> Any | None:
    return {"": 1, "+": 1, "-": -1}.get(text) or read_expression(text)


def scaled(node: Grid | Group, before: str) -> Answer | None:
    """Multiply a matrix or vector by the factor before it; None where that is no factor."""
    if not before:
        return node
    factor = _factor(before)
    if factor is None:
        return None

    def times(cell: Answer) -> Answer:
        value = getattr(cell, "value", None)
        if value is None:
            raise ValueError
        return Value(to_sympy(factor) * to_sympy(value))

    try:
        if isinstance(node, Grid):
            return Grid(tuple(tuple(times(cell) for cell in row) for row in node.rows))
        return Group(node.left, node.right, tuple(map(times, node.items)))
    except ValueError:
        return None


def read_nested(group: Group) -> Answer:
    """Turn ``[[1,2],[3,4]]`` into a matrix; any other group is returned."""
    rows = [item.items for item in group.items if isinstance(item, Group) and item.left == "[" and item.right == "]"]
    if (
        group.left == "["
        and group.right == "]"
        and len(rows) == len(group.items)
        and len({len(row) for row in rows}) == 1
    ):
        return Grid(tuple(rows))
    return group


def read_scaled_group(text: str, read: Read) -> Answer | None:
    r"""Read ``-(1,2)``, ``(1,2)^T``, ``\frac12\langle 3,4\rangle`` and ``(1,2)\cdot(3,4)``; None for other text."""
    if transposed := _TRANSPOSED.fullmatch(text):
        row = read(transposed[1])
        return Grid(tuple((item,) for item in row.items)) if isinstance(row, Group) else None
    factors, dots = split(text, _DOT)
    if len(dots) == 1:
        pair = [read(factor) if factor[:1] in ("(", "\\") else None for factor in factors]
        if all(isinstance(vector, Group) for vector in pair):
            return _dot(*pair)  # type: ignore[arg-type]
    match = re.fullmatch(
        r"([-+]|[-+]?(?:[\d./]|\\(?:frac|sqrt)\{[^{}]*\}(?:\{[^{}]*\})?)+)(?:\\cdot)?((?:\(|\\langle).*,.*(?:\)|\\rangle))",
        text,
    )
    if match:
        vector = read(match[2])
        if isinstance(vector, Group):
            return scaled(vector, match[1])
    return None


def _dot(one: Group, other: Group) -> Answer | None:
    values = [[to_sympy(getattr(item, "value", None)) for item in group.items] for group in (one, other)]
    if len(values[0]) != len(values[1]) or any(value is None for side in values for value in side):
        return None
    return Value(sum(left * right for left, right in zip(*values, strict=True)))


def read_system(text: str, read: Read) -> Answer | None:
    r"""Read the lines of ``cases`` or ``aligned``: relations side by side, or values with their conditions."""
    match = _SYSTEM.fullmatch(text)
    if not match:
        return None
    rows = rows_of(match["inside"])
    if not rows or len(rows) > _MOST_CELLS:
        return None
    if match["kind"] == "array" and not all(re.search(r"[=<>]|\\(?:leq|geq|neq)", "".join(row)) for row in rows):
        return None
    if "cases" in match["kind"] and all(len(row) == 2 for row in rows):
        conditions = [
            re.sub(r"^(?:\\text\{ ?)?(?:if|for|when|where)(?![a-z]) ?(?: ?\})? ?", "", row[1]) for row in rows
        ]
        cells = [
            (read(row[0].rstrip(",")), read(condition.rstrip(",.")))
            for row, condition in zip(rows, conditions, strict=True)
        ]
        return Grid(tuple(cells), unordered=True)
    lines = ["".join(row).rstrip(",;. ") for row in rows]
    return read(",".join(lines).replace(",=", "="))
