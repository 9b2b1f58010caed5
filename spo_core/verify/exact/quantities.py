r"""What stands around an amount: its unit, a percent or degree sign, a currency, "million".

Works on text that ``notation.normalise`` has been through.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

PERCENT, DEGREES = "%", "degree"
OTHER = "other"
"""A unit that agrees with any but percent and degrees, ``units``; one in no table stands behind: ``other apple``."""

_SPELLINGS = {
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre", "km": "kilometer kilometre",
    "in": "inch inche", "ft": "foot feet", "yd": "yard", "mi": "mile", "mg": "milligram", "g": "gram gm",
    "kg": "kilogram kilo", "lb": "pound", "oz": "ounce", "ml": "milliliter millilitre", "l": "liter litre",
    "gal": "gallon", "s": "sec second", "min": "minute", "h": "hr hour", "day": "d", "week": "wk", "month": "",
    "year": "yr", "$": "dollar usd buck", "cent": "", "euro": "eur", "mph": "", "kph": "kmh", "rad": "radian",
    DEGREES: "deg", PERCENT: "percent pct", "unit": "", "acre": "", "rupee": "", "ton": "",
    "quart": "qt", "pint": "", "hz": "hertz", "th": "st nd rd",
}  # fmt: skip
_UNITS = {spelling: unit for unit, others in _SPELLINGS.items() for spelling in (unit, *others.split())}
_MAGNITUDES = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
}  # fmt: skip

# With one of these behind it, a number is not the answer, or not all of it.
_CONNECTIVES = """
    and or not no nor but is isn't are aren't was were if when than then more less least most fewer to half halves
    third thirds fourth fourths fifth fifths sixth sixths eighth eighths tenth tenths hundredths thousandths
    squared cubed factorial times plus minus mod modulo remainder base divided over under between maybe perhaps
    wrong false incorrect does doesn't do did can cannot can't either neither with without one two three four five
    six seven eight nine ten twenty twice double each except unless instead through until about approximately
    nearly almost solutions solution undefined choose multiplied raised power by infinity pi i
    seventh sevenths ninth ninths hundredth thousandth below above zero negative positive
"""
_NOT_A_UNIT = frozenset(_CONNECTIVES.split())
_MOST_WORDS = 5
_FILLERS = frozenset(["of", "a", "an", "the", "total", "left", "remaining", "altogether"])
_IRREGULAR = {
    "people": "person",
    "children": "child",
    "men": "man",
    "women": "woman",
    "mice": "mouse",
    "geese": "goose",
}

_TEXT = r"\\text\{[^{}\\]*\}"
_PLAIN_WORD = r"(?<![a-zA-Z\\{_^.'/-])[a-zA-Z][a-zA-Z.'/-]*"
_TAIL = re.compile(rf"(?: ?(?:{_TEXT}|{_PLAIN_WORD})(?:\^\{{[23]\}})?(?:/(?=\\text))?)+$")
_ORDINAL = re.compile(r"(?:1(?=st)|2(?=nd)|3(?=rd)|\d(?=th)|\d(?=\^\{(?:th|st|nd|rd)\}))(?:[a-z]{2}|\^\{[a-z]{2}\})$")
_MONEY = re.compile(r"([-+]?)(?:\\\$|(?:USD|US) ?(?:\\\$)?)(?=[\d.\\+-])")
_TRIGONOMETRY = re.compile(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)")
_CLOCK = re.compile(r"(\d{1,2})(?::(\d\d))? ?(?:\\text\{)? ?([ap]\.?m\.?)?\}?", re.ASCII | re.IGNORECASE)
_PRODUCT = re.compile(r"[abcd]+|[k-np-tv-z]+")
"""Letters that are rather a product of variables than a word: ``abc``, ``xy``, ``kmn``."""
_LETTER_BEHIND = re.compile(r"[a-z](?=\\text\{ ?[a-z])|i(?= )")
"""The last letter of an amount: ``i`` in ``6-5i units``."""
_LONGEST = 300


@dataclass(frozen=True, slots=True)
class Measured:
    """``amount`` is text still; the quantity is ``amount * factor`` of ``unit``."""

    amount: str
    factor: Fraction
    unit: str | None


def measured(text: str) -> Measured | None:
    """The amount apart from what it counts; None where ``text`` names neither unit, sign nor magnitude."""
    if len(text) > _LONGEST:
        return None
    money = _MONEY.match(text)
    if money:
        rest = money.group(1) + text[money.end() :]
        inner = measured(rest)
        if inner is None:
            return Measured(rest, Fraction(1), "$")
        return Measured(inner.amount, inner.factor, "$") if inner.unit in (None, "$") else None
    for sign, unit in ((r"\$", "$"), (r"\%", PERCENT), (r"^\circ", DEGREES)):
        if text.endswith(sign) and len(text) > len(sign):
            amount = text.removesuffix(sign).strip()
            return None if unit == DEGREES and _TRIGONOMETRY.search(amount) else Measured(amount, Fraction(1), unit)
    scale = re.search(r"\^\\circ ?(?:\\text\{)?([CF])\}?$", text)
    if scale:
        return Measured(text[: scale.start()], Fraction(1), DEGREES + scale.group(1))
    if ordinal := _ORDINAL.search(text):
        return Measured(text[: ordinal.start() + 1], Fraction(1), "th")
    return _counted(text)


def _counted(text: str) -> Measured | None:
    """An amount with words behind it."""
    tail = _TAIL.search(text)
    if not tail or not tail.start():
        return None
    begin = tail.start()
    factor_behind = _LETTER_BEHIND.match(tail.group())
    if factor_behind and not _is_unit(factor_behind.group()):
        begin += 1
    amount, counted = text[:begin].strip(), text[begin:]
    if begin == tail.start() and not re.search(r"[\d})\]]$|\\[a-z]+$", amount):
        return None  # the amount must end as one: "x feet" is words
    words = _words(counted)
    if not 0 < len(words) <= _MOST_WORDS or not all(map(_may_count, words)):
        return None
    spaced = counted.startswith((" ", r"\text"))
    if not spaced and (len(words) > 1 or not _is_unit(words[0]) or len(_bare(words[0])) == 1):
        return None  # "5xy" is a product, "5cm" a length
    factor = Fraction(_MAGNITUDES.get(_bare(words[0]).removesuffix("s"), 1))
    if factor != 1:
        words = words[1:]
    return Measured(amount, factor, _unit(words) if words else None)


def _may_count(word: str) -> bool:
    """A word, that is no connective and no product of variables."""
    bare = _bare(word)
    if bare in _NOT_A_UNIT or not re.fullmatch(r"[a-z.']+", bare):
        return False
    return _is_unit(word) or bare in ("per", "of", "the") or (len(bare) > 2 and not is_product(bare))


def is_product(letters: str) -> bool:
    return len(letters) <= 3 and _PRODUCT.fullmatch(letters) is not None


def _bare(word: str) -> str:
    return word.split("^")[0]


def _words(tail: str) -> list[str]:
    """Lower-case words of a tail, each with its power: ``square cm`` is ``cm^2``."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", tail).replace("/", " per ").lower()
    plain = re.sub(r"\s*\^\{(\d)\}", r"^\1", plain)
    words: list[str] = []
    power = ""
    for word in plain.replace("sq.", "square").replace("-", " ").split():
        if word in ("square", "sq"):
            power = "^2"
        elif word == "cubic":
            power = "^3"
        elif word in ("squared", "cubed") and words and _is_unit(words[-1]):
            words[-1] += "^2" if word == "squared" else "^3"
        else:
            words.append(word + power)
            power = ""
    return words


def _is_unit(word: str) -> bool:
    return _singular(word) in _UNITS


def _singular(word: str) -> str:
    word = word.split("^")[0]
    if word in _UNITS:
        return word
    word = word.rstrip(".")
    return word if word in _UNITS else word.removesuffix("s")


def _unit(words: list[str]) -> str:
    r"""One name for a unit in all its spellings: ``feet per second`` and ``\text{ft}/\text{s}`` are ``ft/s``."""
    words = [word for word in words if word not in _FILLERS]
    names: list[str] = []
    known = True
    for word in words:
        if word == "per":
            names.append("/")
        elif _is_unit(word):
            names.append(_UNITS[_singular(word)] + ("^" + word.split("^")[1] if "^" in word else ""))
        else:
            names.append(_one_of(word))
            known = False
    name = "".join(names)
    if known or not name:
        return {"mi/h": "mph", "km/h": "kph"}.get(name, OTHER if name.startswith("unit") or not name else name)
    return " ".join([OTHER, *names])


def _one_of(word: str) -> str:
    """The singular of ``apples``, ``boxes`` and ``candies``."""
    word = _IRREGULAR.get(word, word)
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if re.search(r"(?:s|x|z|ch|sh)es$", word):
        return word[:-2]
    return word if word.endswith(("ss", "us")) else word.removesuffix("s")


def agree(one: str | None, other: str | None) -> bool:
    """Whether two answers may be the same although one, or neither, names its unit."""
    if one is None or other is None or one == other:
        return True
    if OTHER in (one, other):
        return PERCENT not in (one, other) and DEGREES not in (one, other)
    if one.startswith(OTHER) or other.startswith(OTHER):
        pairs = zip(_counted_words(one), _counted_words(other), strict=False)  # apples, and what they are per
        return all(these <= those or those <= these for these, those in pairs)
    return one.startswith(DEGREES) and other.startswith(DEGREES) and DEGREES in (one, other)  # Celsius or Fahrenheit


def _counted_words(unit: str) -> list[set[str]]:
    return [set(part.split()) for part in unit.removeprefix(OTHER).split("/")]


def clock(text: str) -> tuple[int, int, str] | None:
    """Hour, minute and ``am``, ``pm`` or nothing of a time of day; None where there are neither minutes nor these."""
    match = _CLOCK.fullmatch(text)
    if not match or not (match.group(2) or match.group(3)):
        return None
    hour, minute, half = match.groups()
    return int(hour), int(minute or 0), (half or "").replace(".", "").lower()
