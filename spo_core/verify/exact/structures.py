r"""Reads an answer: a value, an amount, a tuple or interval, several answers, an equation, a region, words...

``read`` splits normalised text at its loosest sign first - "or", commas, relations, unions, brackets - and leaves
single expressions to ``expressions``. Text that is none of these is ``Words``, and equals only the same words.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from spo_core.verify.exact.conditions import without_condition
from spo_core.verify.exact.expressions import read_expression
from spo_core.verify.exact.families import as_family
from spo_core.verify.exact.grids import read_grid, read_nested, read_scaled_group, read_system
from spo_core.verify.exact.library import read_by_library
from spo_core.verify.exact.names import is_name
from spo_core.verify.exact.nodes import (
    NOTHING,
    VARIABLE,
    Amount,
    Answer,
    Based,
    Clock,
    Equation,
    Group,
    Letter,
    Ratio,
    Read,
    Region,
    Residue,
    Several,
    Value,
    Words,
    as_words,
    obvious_words,
)  # fmt: skip
from spo_core.verify.exact.notation import normalise
from spo_core.verify.exact.phrases import CARDINALS
from spo_core.verify.exact.quantities import clock, measured
from spo_core.verify.exact.relations import read_implication, read_member, read_relation
from spo_core.verify.exact.sets import as_region, joined_regions, named_set, read_builder, side_by_side, whole_numbers
from spo_core.verify.exact.tokens import split
from spo_core.verify.exact.wrappers import closing

_DEEPEST = 12
_MOST_PARTS = 200

_AND_OR = re.compile(r",? ?(?:\\text\{,? ?(or|and)\}|(?<![a-zA-Z\\])(or|and)(?![a-zA-Z])) ?")
_COMMA = re.compile(rf"[,;] ?|\\\\(?={VARIABLE}=)")
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!\d)", re.ASCII)
_SET_SIGN = re.compile(
    r"\\(?:cup|cap|setminus)(?![a-zA-Z])|-(?=\\(?:\{|mathbb))"
    r"|(?:\\text\{ ?)?(?<![a-zA-Z])union(?![a-zA-Z])(?: ?\})?|(?<=[)\]}]) ?U ?(?=[(\[\\{])"
)
_POINT = re.compile(r"^[ABD-MOQ-TV-Z](?=\(.*,.*\)$)")
"""Matches the name of a point before its coordinates; letters of binomials, permutations and distributions are none."""
_FRENCH = re.compile(r"([\[\]])([^\[\]]+[,;][^\[\]]+)([\[\]])")

_LETTER = re.compile(r"\(?([a-zA-Z])\)?")
_CHOICE = re.compile(r"(?:option|choice|answer) ?\(?([a-z])\)?", re.IGNORECASE)
_LABELLED = re.compile(
    r"(?:\(([A-J])\)(?=[\d.$]|\\(?!cdot|times)|[a-z]+ |[a-z]{3,})|([A-J])[.):] ?)([\w\\$.-][^A-Z()]*)"
)
_LABEL = re.compile(
    r"(?:\\text\{([a-zA-Z ]{3,}?)(?:: ?\}| ?\} ?:)|([a-zA-Z][a-zA-Z ]{2,}):|(?:l|\\ell):(?=y=)) ?([^:=].*)"
)
_REFUTED = re.compile(
    r"(?<![a-z])(?:is|isn't|not|wrong|false|incorrect|rejected|eliminated|or|and|nor|but|no|impossible|invalid|cannot)(?![a-z])"
)
_BASED = re.compile(
    r"(?:\((?=[^()]*\))|\\text\{)?([0-9A-Fa-f.]+)[)}]?"
    r"(?:_\{\(?(\d+|[a-z]+)\)?\}| ?(?:\\text\{ ?)?(?:in |\()*base\}? ?(\d+|[a-z]+)\)?\}?)"
)
_RESIDUE = re.compile(
    rf"(?:({VARIABLE}) ?\\equiv ?)?(-?[\d./]+) ?\(?(?:\\text\{{)? ?\(?\\?(pmod|bmod|mod)\}}? ?\{{?(\d+)\}}?\)?"
)
_RATIO_SIGN = re.compile(r":|-to-|(?:\\text\{ ?to ?\}|(?<![a-zA-Z])to(?![a-zA-Z\\]))")


def read(text: str, depth: int = 0) -> Answer:
    """Read normalised ``text`` as an answer; as Words where no reader knows it."""
    if depth > _DEEPEST or not text:
        return as_words(text)

    def deeper(part: str) -> Answer:
        return read(part, depth + 1)

    for reader in _READERS:
        node = reader(text, deeper)
        if node is not None:
            return node
    return as_words(text)


def _read_choice(text: str, deeper: Read) -> Answer | None:
    r"""Read a choice with its text, as ``(A) 5`` and ``E. some theory``, but not ``(A) is wrong``."""
    label = _LABELLED.fullmatch(text)
    if not label or _REFUTED.search(label[3]):
        return None
    return Letter(label[1] or label[2], None, label[3].strip())


def _read_labelled(text: str, deeper: Read) -> Answer | None:
    r"""Read the answer behind a label, as in ``\text{vertex: }(1,2)`` and "Range: [0,1]"."""
    match = _LABEL.fullmatch(text)
    return deeper(match[3]) if match and is_name(match[1] or match[2] or "l") else None


def _read_amounts(text: str, deeper: Read) -> Answer | None:
    """Read numbers in words and amounts with units: one, or several side by side, as ``2 hours 30 minutes``."""
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


def _read_words(text: str, deeper: Read) -> Answer | None:
    r"""Read words that are obviously no mathematics, sets with a name, and ``\emptyset``."""
    points = named_set(text)
    return obvious_words(text) if points is None else Region(points)


def _read_condition(text: str, deeper: Read) -> Answer | None:
    found = without_condition(text)
    if found is None:
        return None
    main, letters, which = found
    node = deeper(main)
    if isinstance(node, Words) or which == "?":
        return None
    if which == "R":
        return node
    if isinstance(node, Region) and letters == [node.unknown]:
        return whole_numbers(node, which)
    return as_family(node, letters, which)


def _read_several(text: str, deeper: Read) -> Answer | None:
    if _THOUSANDS.fullmatch(text.lstrip("-").removeprefix(r"\$")):
        return deeper(text.replace(",", ""))
    groups, joints = split(text, _AND_OR)
    joints = ["or" if "or" in joint else "and" for joint in joints]
    items: list[str] = []
    for group in groups:
        items.extend(_split_at_commas(group))
    if len(items) == 1 and items[0] != text and "," in text:
        return deeper(items[0])  # 1,000x
    if len(items) == 1 or len(items) > _MOST_PARTS:
        return None
    if any(not item for item in items):
        return None
    said = re.match(rf"{VARIABLE} ?\\neq(?![a-z])|[a-zA-Z]=|\({VARIABLE}(?:,{VARIABLE})+\)=", items[0])
    if said and not any(re.search(r"[=<>]|\\[lgn]eq", item) for item in items[1:]):  # x = 1, 2
        items[1:] = [said[0] + item for item in items[1:]]
    nodes = [deeper(item) for item in items]
    if said and "neq" in said[0] and "or" not in joints:
        return joined_regions(nodes, ["and"])
    if joints and any(isinstance(node, Region) for node in nodes):
        return joined_regions(nodes, joints)
    if not joints and all(isinstance(node, Region) and node.unknown for node in nodes):
        return side_by_side(nodes)
    flat: list[Answer] = []
    for node in nodes:
        flat.extend(node.items if isinstance(node, Several) else [node])
    names = [node.name for node in flat if isinstance(node, Equation) and node.name]
    solutions = len(names) > 1 and len(set(names)) == 1
    expanded = len(flat) > len(nodes)
    return Several(tuple(flat), ordered=not (joints or solutions or expanded))


def _split_at_commas(text: str) -> list[str]:
    """Split at commas and semicolons, except for commas within numbers, as in ``1,000, 2,000``."""
    between, numbers = split(text, _THOUSANDS, strip=False)  # those in brackets are read later
    plain = [number.replace(",", "") for number in numbers]
    joined = "".join(part for pair in zip(between, [*plain, ""], strict=True) for part in pair)
    return split(joined, _COMMA)[0]


def _read_signs(text: str, deeper: Read) -> Answer | None:
    r"""Read ``\pm`` as two answers, with plus and with minus."""
    signs = re.findall(r"\\(?:pm|mp)(?![a-zA-Z])", text)
    if not signs or signs.count(r"\pm") > 1:  # (\pm 1, \pm 2): two or four
        return None
    upper = re.sub(r"\\pm(?![a-zA-Z])", "+", re.sub(r"\\mp(?![a-zA-Z])", "-", text))
    lower = re.sub(r"\\pm(?![a-zA-Z])", "-", re.sub(r"\\mp(?![a-zA-Z])", "+", text))
    items: list[Answer] = []
    for signed in (upper, lower):
        node = deeper(normalise(signed))
        items.extend(node.items if isinstance(node, Several) else [node])
    if r"\neq" in text and all(isinstance(item, Region) for item in items):
        return joined_regions(items, ["and"])
    return Several(tuple(items), ordered=False)


def _read_sets(text: str, deeper: Read) -> Answer | None:
    """Read unions, intersections and differences, from the left."""
    sides, signs = split(text, _SET_SIGN)
    if not signs:
        return None
    points: Any = None
    for sign, side in zip(["", *signs], sides, strict=True):
        region = as_region(deeper(side))
        if region is None:
            return None
        if not sign:
            points = region
        else:
            join = {r"\cap": points.intersect, r"\setminus": points.__sub__, "-": points.__sub__}
            points = join.get(sign, points.union)(region)
    return Region(points)


def _read_one(text: str, deeper: Read) -> Answer | None:
    """Read a single answer without separators."""
    if letter := _LETTER.fullmatch(text) or _CHOICE.fullmatch(text):
        return Letter(letter.group(1), read_expression(letter.group(1)))
    if residue := _RESIDUE.fullmatch(text):
        return _residue(*residue.groups())
    if (based := _BASED.fullmatch(text)) and (numeral := _based(*based.groups())):
        return numeral
    if grid := read_grid(text, lambda cell: deeper(normalise(cell))):
        return grid
    group = _group(text, deeper) or read_scaled_group(text, deeper)
    if group is not None:
        return group
    value = read_expression(text)
    if value is None:
        value = read_by_library(text)
    return _ratio(text) if value is None else Value(value)


def _ratio(text: str) -> Answer | None:
    parts, signs = split(text, _RATIO_SIGN)
    terms = [CARDINALS.get(part, read_expression(part)) for part in parts] if signs else []
    return Ratio(tuple(terms)) if terms and all(term is not None and term != 0 for term in terms) else None


def _residue(unknown: str | None, value: str, command: str, modulus: str) -> Answer | None:
    """Read ``3 mod 5`` as a residue class, but not ``8 mod 5``, which may be an operation with result 3."""
    number, divisor = read_expression(value), read_expression(modulus)
    if not isinstance(number, Fraction) or not isinstance(divisor, Fraction) or divisor <= 0:
        return None
    if command != "pmod" and not unknown and not 0 <= number < divisor:
        return None
    return Residue(number, divisor, unknown)


def _based(digits: str, subscript: str | None, written: str | None) -> Answer | None:
    name = subscript or written or ""
    base = int(name) if name.isdecimal() and len(name) < 3 else CARDINALS.get(name, 0)
    if not 2 <= base <= 36:
        return None
    if base == 10:
        value = read_expression(digits)
        return None if value is None else Value(value)
    if digits.isalpha() and not (base == 16 and len(digits) > 1 and digits.isupper()):
        return None
    if digits != digits.upper() and any(digit != "." and int(digit, 36) >= base for digit in digits):
        return None  # 2a_{3} is twice a_3
    return Based(digits.upper().lstrip("0") or "0", base)


def _group(text: str, deeper: Read) -> Answer | None:
    """Read brackets around the whole text: a tuple, interval or set."""
    if (french := _FRENCH.fullmatch(text)) and french.group(1, 3) != ("[", "]"):
        text = ("[" if french[1] == "[" else "(") + french[2] + ("]" if french[3] == "]" else ")")
    text = _POINT.sub("", text)
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
        return read_builder(inside, deeper) or _set(inside, items, deeper)
    if len(items) == 1:
        if left == "(" and right == ")":
            inner = deeper(items[0])
            return None if isinstance(inner, Words) else inner
        return read_nested(Group(left, right, (deeper(items[0]),))) if text.startswith("[[") else None
    return read_nested(Group(left, right, tuple(deeper(item) for item in items)))


def _set(inside: str, items: list[str], deeper: Read) -> Answer | None:
    """Read ``\\{1,2\\}``, or ``\\{2k | k \\in \\mathbb{Z}\\}`` as a family."""
    bar = re.fullmatch(r"([^|:]+)[|:]([^|:]+)", inside)
    if bar and (family := _read_condition(f"{bar[1]},{bar[2]}", deeper)) is not None:
        return family
    flat: list[Answer] = []
    for item in items:
        node = deeper(item)
        flat.extend(node.items if isinstance(node, Several) else [node])
    return None if NOTHING in flat else Several(tuple(flat), ordered=False)


_READERS: tuple[Callable[[str, Read], Answer | None], ...] = (
    _read_choice,
    _read_labelled,
    _read_amounts,
    _read_words,
    read_system,
    read_implication,
    _read_condition,
    _read_several,
    _read_signs,
    read_member,
    read_relation,
    _read_sets,
    _read_one,
)
"""Readers, tried in this order: the first that can read a text says what it is."""
