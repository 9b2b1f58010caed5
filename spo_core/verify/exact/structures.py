r"""What an answer is: a value, an amount, a tuple or interval, several answers, an equation, a region, words...

``read`` splits normalised text by its loosest sign first - "or", commas, relations, unions, brackets - and leaves
single expressions to ``expressions``. Text that is none of these is ``Words``, and equals only the same words.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from spo_core.verify.exact.expressions import read_expression
from spo_core.verify.exact.library import read_by_library
from spo_core.verify.exact.nodes import (
    SIMPLE_NAME,
    VARIABLE,
    Amount,
    Based,
    Clock,
    Equation,
    Grid,
    Group,
    Letter,
    Node,
    Region,
    Residue,
    Several,
    Value,
    Words,
    as_words,
    obvious_words,
)  # fmt: skip
from spo_core.verify.exact.notation import closing, normalise
from spo_core.verify.exact.quantities import clock, measured
from spo_core.verify.exact.regions import as_region, inequality, joined_regions, of_any_unknown
from spo_core.verify.exact.tokens import split

_DEEPEST = 12
_MOST_PARTS = 200

_AND_OR = re.compile(r",? ?(?:\\text\{,? ?(or|and)\}|(?<![a-zA-Z\\])(or|and)(?![a-zA-Z])) ?")
_COMMA = re.compile(r"[,;] ?")
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!\d)", re.ASCII)
_RELATION = re.compile(r"=|<|>|\\(?:leq|geq|neq|approx)(?![a-zA-Z])")
_MEMBER = re.compile(r"\\in(?![a-zA-Z])")
_SET_SIGN = re.compile(r"\\(?:cup|cap|setminus)(?![a-zA-Z])")

_NAME = re.compile(
    rf"{VARIABLE}'*(?:\^\{{-1\}})?(?:\([^()=<>]*\))?"  # x, a_{1}, f(x), P(A)
    r"|\|?[A-Z]{2,4}\|?|m?\\angle ?[A-Z]{1,3}|\\(?:overline|triangle) ?\{?[A-Z]+\}?|\[[A-Z]+\]"
    r"|[a-zA-Z](?:\+[a-zA-Z])+|\([a-zA-Z](?:,[a-zA-Z])+\)|\\frac\{d[a-z]?\}\{d[a-z]\}"
    r"|(?:\\text\{[^{}]*\}|[a-zA-Z]{2,}(?: [a-zA-Z]+)*)(?:_\{[^{}]*\})?"
)
_LETTER = re.compile(r"\(?([a-zA-Z])\)?")
_CHOICE = re.compile(r"(?:option|choice|answer) ?\(?([a-z])\)?", re.IGNORECASE)
_LABELLED = re.compile(r"(?:\(([A-J])\)(?=[\d.]|\\(?!cdot|times))|([A-J])[.):] ?)([\w\\$.-][^A-Z()]*)")
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_BASED = re.compile(
    r"\(?([0-9A-Fa-f.]*\d[0-9A-Fa-f.]*)\)?(?:_\{\(?(\d+|[a-z]+)\)?\}| ?(?:\\text\{)?\(?base\}? ?(\d+)\)?\}?)"
)
_RESIDUE = re.compile(
    rf"(?:({VARIABLE}) ?\\equiv ?)?(-?[\d./]+) ?\(?(?:\\text\{{)? ?\(?\\?(pmod|bmod|mod)\}}? ?\{{?(\d+)\}}?\)?"
)
_MATRIX = re.compile(r"[(\[]?\\begin\{([pbB]?matrix|smallmatrix|array)\}(?:\{[lcr|]+\})?(.*)\\end\{\1\}[)\]]?")
_SUCH_THAT = re.compile(r"[a-zA-Z] ?(?:\\in ?\\mathbb\{R\})? ?[|:] ?")


def read(text: str, depth: int = 0) -> Node:
    """What the normalised ``text`` says."""
    if depth > _DEEPEST or not text:
        return as_words(text)
    for reader in (_read_amounts, _read_words, _read_several, _read_signs, _read_member, _read_relation, _read_sets, _read_one):
        node = reader(text, depth)
        if node is not None:
            return node
    return as_words(text)


def _read_words(text: str, depth: int) -> Node | None:
    r"""What is no mathematics at first sight, and ``\emptyset``."""
    if text.lower() in ("all real numbers", "all reals", "all real", r"\mathbb{r}", "any real number"):
        import sympy

        return Region(sympy.S.Reals)
    return obvious_words(text)


def _read_amounts(text: str, depth: int) -> Node | None:
    """Numbers in words, and amounts with units: one, or several side by side, as ``2 hours 30 minutes``."""
    if time := clock(text):
        return Clock(*time)
    found = measured(text)
    if found is None:
        return None
    nodes = [
        Amount(amount.value, amount.unit, amount.product)
        if amount.unit or amount.product is not None
        else Value(amount.value)
        for amount in found
    ]
    return nodes[0] if len(nodes) == 1 else Several(tuple(nodes), ordered=True)


def _read_several(text: str, depth: int) -> Node | None:
    if _THOUSANDS.fullmatch(text.lstrip("-").removeprefix(r"\$")):
        return read(text.replace(",", ""), depth + 1)
    groups, joints = split(text, _AND_OR)
    joints = ["or" if "or" in joint else "and" for joint in joints]
    items: list[str] = []
    for group in groups:
        items.extend(_split_at_commas(group))
    if len(items) == 1 and items[0] != text and "," in text:
        return read(items[0], depth + 1)  # 1,000x
    if len(items) == 1 or len(items) > _MOST_PARTS:
        return None
    if any(not item for item in items):
        return None
    nodes = [read(item, depth + 1) for item in items]
    if joints and all(isinstance(node, Region) for node in nodes):
        return joined_regions(nodes, joints)
    flat: list[Node] = []
    for node in nodes:
        flat.extend(node.items if isinstance(node, Several) else [node])
    names = [node.name for node in flat if isinstance(node, Equation) and node.name]
    solutions = len(names) > 1 and len(set(names)) == 1
    expanded = len(flat) > len(nodes)
    return Several(tuple(flat), ordered=not (joints or solutions or expanded))


def _split_at_commas(text: str) -> list[str]:
    """Parts between commas and semicolons, but for the commas within numbers, as in ``1,000, 2,000``."""
    between, numbers = split(text, _THOUSANDS, strip=False)  # but for those in brackets, which are read later
    plain = [number.replace(",", "") for number in numbers]
    joined = "".join(part for pair in zip(between, [*plain, ""], strict=True) for part in pair)
    return split(joined, _COMMA)[0]


def _read_signs(text: str, depth: int) -> Node | None:
    r"""``\pm``: the answer with plus and the one with minus."""
    if not re.search(r"\\(?:pm|mp)(?![a-zA-Z])", text):
        return None
    upper = re.sub(r"\\pm(?![a-zA-Z])", "+", re.sub(r"\\mp(?![a-zA-Z])", "-", text))
    lower = re.sub(r"\\pm(?![a-zA-Z])", "-", re.sub(r"\\mp(?![a-zA-Z])", "+", text))
    items: list[Node] = []
    for signed in (upper, lower):
        node = read(normalise(signed), depth + 1)
        items.extend(node.items if isinstance(node, Several) else [node])
    return Several(tuple(items), ordered=False)


def _read_member(text: str, depth: int) -> Node | None:
    sides, signs = split(text, _MEMBER)
    if len(signs) != 1 or not SIMPLE_NAME.fullmatch(sides[0]):
        return None
    node = read(sides[1], depth + 1)
    region = None if isinstance(node, Several) else as_region(node)
    return node if region is None else Region(region, sides[0])


def _read_relation(text: str, depth: int) -> Node | None:
    sides, signs = split(text, _RELATION)
    if not signs:
        return None
    if not sides[0] and signs[0] in ("=", r"\approx"):
        return read(text[len(signs[0]) :].strip(), depth + 1)
    if not sides[0] and len(signs) == 1:
        return of_any_unknown(signs[0], sides[1])
    if not all(sides):
        return None
    if all(sign == "=" for sign in signs):
        return _equation(sides, depth)
    if r"\approx" in signs:
        return _approximation(sides, signs, depth)
    return None if "=" in signs else inequality(sides, signs)


def _approximation(sides: list[str], signs: list[str], depth: int) -> Node | None:
    r"""``x \approx 3.14`` is an answer; of ``\frac{22}{7} \approx 3.14`` only the exact part is."""
    if signs[-1] != r"\approx" or signs.count(r"\approx") > 1:
        return None
    if len(sides) == 2 and _NAME.fullmatch(sides[0]):
        return _equation(sides, depth)
    exact = read("=".join(sides[:-1]), depth + 1)
    value = exact.sides[-1] if isinstance(exact, Equation) else exact
    rounded = read(sides[-1], depth + 1)
    if not (isinstance(value, Value) and isinstance(rounded, Value)):
        return None
    try:
        near = abs(float(value.value) - float(rounded.value)) <= 0.01 * abs(float(value.value))
    except (TypeError, ValueError, OverflowError):
        return None
    return exact if near else None


def _equation(sides: list[str], depth: int) -> Node | None:
    nodes = tuple(read(side, depth + 1) for side in sides)
    for named in (0, len(sides) - 1):
        others = nodes[1:] if named == 0 else nodes[:-1]
        if named and not SIMPLE_NAME.fullmatch(sides[named]) and isinstance(nodes[0], Letter):
            continue  # "y = ax" is not what ax is called
        if _NAME.fullmatch(sides[named]) and not any(isinstance(node, Words) for node in others):
            if len(nodes) == 2 and isinstance(others[0], Several):  # x = {1,2}: x is 1 or 2
                each = [(nodes[0], item) if named == 0 else (item, nodes[1]) for item in others[0].items]
                return Several(tuple(Equation(pair, sides[named], named) for pair in each), ordered=False)
            return Equation(nodes, sides[named], named)
    return Equation(nodes) if all(isinstance(node, Value | Amount | Letter) for node in nodes) else None


def _read_sets(text: str, depth: int) -> Node | None:
    """Unions, intersections and differences, from the left."""
    sides, signs = split(text, _SET_SIGN)
    if not signs:
        return None
    points: Any = None
    for sign, side in zip(["", *signs], sides, strict=True):
        region = as_region(read(side, depth + 1))
        if region is None:
            return None
        if not sign:
            points = region
        else:
            points = {r"\cup": points.union, r"\cap": points.intersect}.get(sign, points.__sub__)(region)
    return Region(points)


def _read_one(text: str, depth: int) -> Node | None:
    """One thing without separators."""
    if letter := _LETTER.fullmatch(text) or _CHOICE.fullmatch(text):
        return Letter(letter.group(1), read_expression(letter.group(1)))
    if residue := _RESIDUE.fullmatch(text):
        return _residue(*residue.groups())
    if (based := _BASED.fullmatch(text)) and (numeral := _based(*based.groups())):
        return numeral
    if grid := _MATRIX.fullmatch(text):
        return _grid(grid.group(2), depth)
    group = _group(text, depth)
    if group is not None:
        return group
    if label := _LABELLED.fullmatch(text):
        return Letter((label.group(1) or label.group(2)), None, label.group(3).strip())
    value = read_expression(text)
    if value is None:
        value = read_by_library(text)
    return None if value is None else Value(value)


def _residue(unknown: str | None, value: str, command: str, modulus: str) -> Node | None:
    """``3 mod 5``, but not ``8 mod 5``, which may be an operation, and then is 3."""
    number, divisor = read_expression(value), read_expression(modulus)
    if not isinstance(number, Fraction) or not isinstance(divisor, Fraction) or divisor <= 0:
        return None
    if command != "pmod" and not unknown and not 0 <= number < divisor:
        return None
    return Residue(number, divisor, unknown)


def _based(digits: str, subscript: str | None, written: str | None) -> Node | None:
    name = subscript or written or ""
    base = int(name) if name.isdecimal() and len(name) < 3 else _BASES.get(name, 0)
    if not 2 <= base <= 36:
        return None
    if base == 10:
        value = read_expression(digits)
        return None if value is None else Value(value)
    if digits != digits.upper() and any(digit != "." and int(digit, 36) >= base for digit in digits):
        return None  # 2a_{3} is twice a_3
    return Based(digits.upper().lstrip("0") or "0", base)


def _grid(inside: str, depth: int) -> Node | None:
    rows = [row for row in re.split(r"\\\\(?: ?\[[^\[\]]*\])?|\\cr(?![a-z])", inside.strip()) if row.strip()]
    cells = [[cell.strip() for cell in row.split("&")] for row in rows]
    if not cells or len(cells) * len(cells[0]) > _MOST_PARTS or any(not cell for row in cells for cell in row):
        return None
    return Grid(tuple(tuple(read(normalise(cell), depth + 1) for cell in row) for row in cells))


def _group(text: str, depth: int) -> Node | None:
    """Brackets around everything."""
    opening = re.match(r"\(|\[|\\\{|\\langle", text)
    if not opening:
        return None
    end = closing(text, 0)
    right = None if end is None else text[end:]
    if right not in (")", "]", r"\}", r"\rangle"):
        return None
    inside = text[opening.end() : end].strip()
    # (100,200) is a point, but (1,000, 200) has a number with a comma
    items = _split_at_commas(inside) if ", " in inside else split(inside, _COMMA)[0]
    left = opening.group()
    if len(items) > _MOST_PARTS or not all(items):
        return None
    if left == r"\{" and right == r"\}":
        if such := _SUCH_THAT.match(inside):  # {x | x > 3}
            return read(inside[such.end() :], depth + 1)
        flat: list[Node] = []
        for item in items:
            node = read(item, depth + 1)
            flat.extend(node.items if isinstance(node, Several) else [node])
        return Several(tuple(flat), ordered=False)
    if len(items) == 1:
        if left == "(" and right == ")":
            inner = read(items[0], depth + 1)
            return None if isinstance(inner, Words) else inner
        return None
    return Group(left, right, tuple(read(item, depth + 1) for item in items))
