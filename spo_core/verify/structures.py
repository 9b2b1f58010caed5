r"""What an answer is: a value, an amount, a tuple or interval, several answers, an equation, a region, words...

``read`` splits normalised text by its loosest sign first - "or", commas, relations, unions, brackets - and leaves
single expressions to ``expressions``. Text that is none of these is ``Words``, and equals only the same words.
"""

from __future__ import annotations

import re
from typing import Any

from spo_core.verify.expressions import read_expression
from spo_core.verify.library import read_by_library
from spo_core.verify.nodes import (
    NOTHING,
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
    Several,
    Value,
    Words,
)  # fmt: skip
from spo_core.verify.notation import CLOSING, OPENING, closing, normalise
from spo_core.verify.quantities import clock, is_product, measured
from spo_core.verify.regions import as_region, inequality, joined_regions

_DEEPEST = 12
_MOST_PARTS = 200
_MASK = "\0"  # which normalised text has none of

_AND_OR = re.compile(r",? ?(?:\\text\{,? ?(or|and)\}|(?<![a-zA-Z\\])(or|and)(?![a-zA-Z])) ?")
_COMMA = re.compile(r"[,;] ?")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d)", re.ASCII)
_RELATION = re.compile(r"=|<|>|\\(?:leq|geq|neq|approx)(?![a-zA-Z])")
_MEMBER = re.compile(r"\\in(?![a-zA-Z])")
_SET_SIGN = re.compile(r"\\(?:cup|cap|setminus)(?![a-zA-Z])")
_SPLITTER = re.compile(r"\\begin\{[a-z]+\}|\\end\{[a-z]+\}|\\[a-zA-Z]+|\\.|[()\[\]{}]", re.DOTALL)

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
_BASED = re.compile(r"\(?([0-9A-F.]*\d[0-9A-F.]*)\)?(?:_\{\(?(\d+|[a-z]+)\)?\}| ?(?:\\text\{)?\(?base\}? ?(\d+)\)?\}?)")
_MATRIX = re.compile(r"[(\[]?\\begin\{([pbB]?matrix|smallmatrix|array)\}(?:\{[lcr|]+\})?(.*)\\end\{\1\}[)\]]?")
_NO_SOLUTION = re.compile(
    r"(?:there (?:is|are) )?no (?:real )?(?:solutions?|roots?)(?: exists?)?|none|(?:empty|null) set"
)
_SUCH_THAT = re.compile(r"[a-zA-Z] ?(?:\\in ?\\mathbb\{R\})? ?[|:] ?")
_ARTICLE = re.compile(r"(?:the|an|a) (?=[a-z]{2})")


def read(text: str, depth: int = 0) -> Node:
    """What the normalised ``text`` says."""
    if depth > _DEEPEST or not text:
        return _words(text)
    for reader in (_read_words, _read_several, _read_signs, _read_member, _read_relation, _read_sets, _read_one):
        node = reader(text, depth)
        if node is not None:
            return node
    return _words(text)


def _read_words(text: str, depth: int) -> Node | None:
    r"""What is no mathematics at first sight, and ``\emptyset``."""
    if text in (r"\emptyset", r"\{\}", r"\{ \}", r"\phi ") or _NO_SOLUTION.fullmatch(text.lower()):
        return NOTHING
    if text.lower() in ("all real numbers", "all reals", "all real", r"\mathbb{r}", "any real number"):
        import sympy

        return Region(sympy.S.Reals)
    if re.fullmatch(r"[a-zA-Z]{2,}", text) and not is_product(text):
        return _words(text)
    if re.search(r"\d,0\d", text) and not re.search(r"\d,(?:000|0\d\d)(?!\d)", text):
        return _words(text)  # "10,00" is neither a number nor two
    return None


def _words(text: str) -> Words:
    """Letter case and articles do not matter in words; in mathematics that is only not understood, they do."""
    plain = " ".join(re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).split())
    if re.fullmatch(r"[^\\{}^_=+\d]*[a-zA-Z]{2}[^\\{}^_=+]*", plain):
        plain = _ARTICLE.sub("", plain.casefold(), count=1) if _ARTICLE.match(plain.casefold()) else plain.casefold()
    hyphenless = plain.replace("-", " ")
    return Words(hyphenless if hyphenless.replace(" ", "").isalpha() else plain.replace(" ", ""))


def _split(text: str, separator: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """Parts of ``text`` and the separators between, outside all brackets."""
    parts, between = [], []
    depth = begin = position = 0
    while position < len(text):
        match = separator.match(text, position) if depth == 0 else None
        if match and match.end() > position:
            parts.append(text[begin:position])
            between.append(match.group())
            begin = position = match.end()
            continue
        token = _SPLITTER.match(text, position)
        if not token:
            position += 1
            continue
        word = token.group()
        depth += (word in OPENING or word.startswith(r"\begin")) - (word in CLOSING or word.startswith(r"\end"))
        position = token.end()
    parts.append(text[begin:])
    return [part.strip() for part in parts], between


def _read_several(text: str, depth: int) -> Node | None:
    if _THOUSANDS.fullmatch(text.lstrip("-").removeprefix(r"\$")):
        return read(text.replace(",", ""), depth + 1)
    groups, joints = _split(text, _AND_OR)
    joints = ["or" if "or" in joint else "and" for joint in joints]
    items: list[str] = []
    for group in groups:
        items.extend(_split_at_commas(group))
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
    masked = _THOUSANDS.sub(lambda match: match.group().replace(",", _MASK), text)
    parts, _ = _split(masked, _COMMA)
    return [part.replace(_MASK, "," if re.search(r"[(\[{]", part) else "") for part in parts]


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
    sides, signs = _split(text, _MEMBER)
    if len(signs) != 1 or not SIMPLE_NAME.fullmatch(sides[0]):
        return None
    node = read(sides[1], depth + 1)
    region = None if isinstance(node, Several) else as_region(node)
    return node if region is None else Region(region, sides[0])


def _read_relation(text: str, depth: int) -> Node | None:
    sides, signs = _split(text, _RELATION)
    if not signs:
        return None
    if not sides[0] and signs[0] in ("=", r"\approx"):
        return read(text[len(signs[0]) :].strip(), depth + 1)
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
        if _NAME.fullmatch(sides[named]) and not any(isinstance(node, Words) for node in others):
            return Equation(nodes, sides[named], named)
    return Equation(nodes) if all(isinstance(node, Value | Amount | Letter) for node in nodes) else None


def _read_sets(text: str, depth: int) -> Node | None:
    """Unions, intersections and differences, from the left."""
    sides, signs = _split(text, _SET_SIGN)
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
    if based := _BASED.fullmatch(text):
        return _based(*based.groups())
    if time := clock(text):
        return Clock(*time)
    if grid := _MATRIX.fullmatch(text):
        return _grid(grid.group(2), depth)
    group = _group(text, depth)
    if group is not None:
        return group
    if label := _LABELLED.fullmatch(text):
        return Letter((label.group(1) or label.group(2)), None, label.group(3).strip())
    quantity = measured(text)
    if quantity is not None:
        value = read_expression(quantity.amount.replace(",", "") if _is_thousands(quantity.amount) else quantity.amount)
        if value is not None:
            product = read_expression(text)
            factor = quantity.factor
            scaled = value * factor if factor == 1 or not hasattr(value, "free_symbols") else value * int(factor)
            return Amount(scaled, quantity.unit, product) if quantity.unit else Value(scaled)
    value = read_expression(text)
    if value is None:
        value = read_by_library(text)
    return None if value is None else Value(value)


def _is_thousands(text: str) -> bool:
    return re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text, re.ASCII) is not None


def _based(digits: str, subscript: str | None, written: str | None) -> Node | None:
    name = subscript or written or ""
    base = int(name) if name.isdecimal() and len(name) < 3 else _BASES.get(name, 0)
    if not 2 <= base <= 36:
        return None
    if base == 10:
        value = read_expression(digits)
        return None if value is None else Value(value)
    return Based(digits.lstrip("0") or "0", base)


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
    items = _split_at_commas(inside) if ", " in inside else _split(inside, _COMMA)[0]
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
