r"""Amounts: a number, in figures or in words, and its unit, percent or degree sign, currency, or ordinal ending.

Works on text that ``notation.normalise`` has been through.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from spo_core.verify.exact.expressions import read_expression
from spo_core.verify.exact.phrases import read_figure, read_phrase
from spo_core.verify.exact.units import DEGREES, DOLLARS, ORDINAL, PERCENT, Unit, parse_unit

_LONGEST = 300
_MONEY = re.compile(
    r"([-+]?) ?(?:(?P<dollar>\\\$|(?:USD|US) ?(?:\\\$)?)|(?:\\text\{ ?)?(?P<other>Rs\.?|INR|EUR|GBP|JPY)(?: ?\})?) ?"
    r"(?=[\d.\\+-])"
)
_CURRENCY_UNITS = {"Rs": "rupee", "Rs.": "rupee", "INR": "rupee", "EUR": "euro", "GBP": "sterling", "JPY": "yen"}
_OF_A = re.compile(r"^ (?:of )?an? (?=[a-z]{2})")
"""Matches " an " or " of a " before a unit, as in "half an hour", "two thirds of a mile"."""
_DOLLARS_AND = re.compile(r"^\\\$ ?(\d[\d,]*) (?=(?:and )?\d+(?: |\\text\{) ?cents?)")
_ORDINAL = re.compile(r"(.*\d) ?(?:\^\{|\\text\{ ?)?(st|nd|rd|th)\}?")
_TRIGONOMETRY = re.compile(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc|cis)")
_PLAIN = (
    r"[-+]?(?:\d[\d,]*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+| ?\\(?:times|cdot) ?10\^\{-?\d+\})?"
    r"|[-+]?\\frac\{\d+\}\{\d+\}|[-+]?\d+/\d+"
)
_WITH_SYMBOLS = re.compile(
    rf"({_PLAIN})( ?)((?:[A-Za-zΩμ°]|\\(?:mu|Omega|text|frac|cdot|times)(?![a-zA-Z])|[/^{{}}()\[\].\d*·-]| )+)"
)
_BEHIND = (
    r"(?:old|long|tall|wide|high|deep|thick|apart|away|ago|late|left|remaining|altogether|total|overall|combined"
    r"|together|each|apiece|in (?:total|all|profit|length|area|volume|width|height|weight|cash|change|savings|revenue"
    r"|sales|earnings)|of (?:time|work|length|area))"
)
_ADDED = re.compile(rf"(?<=[\w$%}}])(?: ?\\text\{{ ?{_BEHIND} ?\}}$| {_BEHIND}(?=\}}?$))")
"""Matches words behind an amount that do not change it."""
_FRACTION_OF_UNITS = re.compile(r"\\frac\{(.+)\}\{(.+)\}")
_MULTIPLIED = re.compile(rf"({_PLAIN})(?:[kK]|(M))")
_WORD_BEHIND = re.compile(r"(?<![a-zA-Z\\{_^])[a-zA-Z]{2,}|\\text\{")
_CLOCK = re.compile(r"(\d{1,2})(?::(\d\d))? ?(?:\\text\{)? ?([ap]\.?m\.?|o'clock)?\}?", re.ASCII | re.IGNORECASE)
_PRODUCT = re.compile(r"[abcd]+|[k-np-tv-z]+")
"""Matches letters that are probably a product of variables, not a word: ``abc``, ``xy``, ``kmn``."""
_COMPOUND = (("h", "min", "s", "day", "week", "month", "year"), ("mi", "yd", "ft", "in"), ("m", "cm", "mm", "km"),
             ("lb", "pound", "oz"), ("kg", "g"), ("$", "cent"), ("degree", "arcmin", "arcsec"),
             ("gal", "qt", "pint", "cup"))  # fmt: skip
"""Units that stand side by side, as in ``2 hours 30 minutes``."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A number with its unit, if any; ``product`` is the text's value if its letters are variables."""

    value: Any
    unit: Unit | None
    product: Any | None = None


def measured(text: str) -> list[Measured] | None:
    """Read the amounts side by side in ``text``, mostly one; None where it has neither words, sign nor unit."""
    if len(text) > _LONGEST:
        return None
    bare = _ADDED.sub("", _DOLLARS_AND.sub(r"\1 dollars ", text))
    single = _signed(bare) or _money(bare) or _with_symbols(bare)
    if single:
        return [single]
    return _in_words(bare) if _WORD_BEHIND.search(text) else None


def _signed(text: str) -> Measured | None:
    r"""Read a number with ``\%``, ``\$`` or ``^\circ`` behind it, ``5th``, or ``70k``."""
    for sign, unit in ((r"\$", DOLLARS), (r"\%", PERCENT), (r"^\circ", DEGREES)):
        if text.endswith(sign) and len(text) > len(sign):
            amount = text.removesuffix(sign).strip()
            if unit == DEGREES and _TRIGONOMETRY.search(amount):
                return None
            return _amount(amount, unit)
    scale = re.search(r"\^\\circ ?(?:\\text\{ ?)?([CF])\}?$", text)
    if scale:
        return _amount(text[: scale.start()], Unit(frozenset([(f"degree{scale[1]}", 1)])))
    if (ordinal := _ORDINAL.fullmatch(text)) and ordinal[2] == _ending(ordinal[1]):
        return _amount(ordinal[1], ORDINAL)
    value = _multiplied(text)
    # 2k may be twice k, but 2.5k is 2500
    return None if value is None else Measured(value, None, None if "." in text else read_expression(text))


def _multiplied(text: str) -> Any | None:
    """The value of ``70k`` and ``1.5M``; None for other text."""
    match = _MULTIPLIED.fullmatch(text)
    value = read_figure(match[1]) if match else None
    return None if match is None or value is None else value * (10**6 if match[2] else 1000)


def _ending(digits: str) -> str:
    return "th" if digits[-2:-1] == "1" else {"1": "st", "2": "nd", "3": "rd"}.get(digits[-1], "th")


def _amount(text: str, unit: Unit) -> Measured | None:
    value = read_figure(text)
    return None if value is None else Measured(value, unit)


def _money(text: str) -> Measured | None:
    r"""Read money: ``\$5``, ``Rs. 500``, ``\$5 million``, ``\$120/month``, ``\$70000 profit``."""
    sign = _MONEY.match(text)
    if not sign:
        return None
    rest = sign[1] + text[sign.end() :]
    name = "$" if sign["dollar"] else _CURRENCY_UNITS[sign["other"]]
    currency = Unit(frozenset([(name, 1)]))
    whole = _multiplied(rest)
    if whole is None:
        whole = read_figure(rest)
    if whole is not None and not getattr(whole, "free_symbols", ()):
        return Measured(whole, currency)
    for end in _ends_of_amount(rest):
        phrase = read_phrase(rest) if end is None else (read_figure(rest[:end].strip()), rest[end:])
        if phrase is None or phrase[0] is None:
            continue
        value, behind = phrase
        if not behind.strip():
            return Measured(value, currency)
        unit = parse_unit(behind.strip(), money=True)
        if unit is not None and unit.is_single(name):
            return Measured(value, currency)
        if unit is not None and not any(power > 0 for _, power in unit.powers):
            return Measured(value, replace(unit, powers=unit.powers | currency.powers))
    return None if whole is None else Measured(whole, currency)


def _ends_of_amount(text: str) -> list[int | None]:
    """Where the amount may end: before a slash, or (None) where the phrase ends."""
    slash = re.search(r" ?/ ?(?=[a-zA-Z\\])", text)
    return [slash.start(), None] if slash else [None]


def _with_symbols(text: str) -> Measured | None:
    r"""Read a plain number and units in symbols: ``5 m``, ``9.8 m/s^{2}``, ``5\Omega``, ``25\frac{km}{h}``."""
    match = _WITH_SYMBOLS.fullmatch(text)
    if not match:
        return None
    amount, space, behind = match.groups()
    fraction = _FRACTION_OF_UNITS.fullmatch(behind.strip())
    symbols = f"{fraction[1]}/({fraction[2]})" if fraction else behind.strip()
    tight = not space and not behind.startswith("\\") and "10^" not in amount  # no space stays behind a brace
    if tight and (re.fullmatch(r"[A-Za-z](?:\^\{\d\})?", symbols) or is_product(symbols)):
        return None  # 5m: five times m
    unit = parse_unit(symbols)
    if unit is None or unit.words:
        return None
    value = read_figure(amount)
    product = None if r"\text" in text else read_expression(text)
    return None if value is None else Measured(value, unit, product)


def _in_words(text: str) -> list[Measured] | None:
    found: list[Measured] = []
    rest = text
    while rest.strip():
        one = _first_amount(rest.strip(), following=bool(found))
        if one is None:
            return None
        amount, rest = one
        found.append(amount)
    units = [amount.unit for amount in found]
    if len(found) > 1 and not _side_by_side(units):
        return None
    return found or None


def _first_amount(text: str, *, following: bool) -> tuple[Measured, str] | None:
    """Read the amount at the beginning of ``text``, to its end or to the next amount; returns it and the rest."""
    if following:
        text = re.sub(r"^(?:,? ?(?:and|\\text\{ ?,? ?and ?\}) |,)\s*", "", text)
        if single := _with_symbols(text):
            return single, ""
    phrase = read_phrase(text)
    if phrase is None:
        return None
    value, behind = phrase
    if not behind.strip():
        return Measured(value, None), ""
    if isinstance(value, Fraction) and 0 < value < 1:
        behind = _OF_A.sub(" ", behind)
    another = re.search(
        r"(?<=[a-z}.]) ?(?:,? ?(?:and|\\text\{ ?,? ?and ?\}) ?|, ?| )(?=\d)|(?<=[a-z]) (?=and \d)|(?<=\})(?=\d)", behind
    )
    ends = [len(behind), another.start()] if another else [len(behind)]
    for end in ends:
        unit = parse_unit(behind[:end].strip(), symbols=behind.lstrip() != behind and isinstance(value, Fraction))
        if unit is not None:
            before = text[: len(text) - len(behind)][-1:]
            tight = behind[:1] not in (" ", "\\") and (before.isalnum() or len(behind[:end].strip()) < 4)
            if tight and (unit.words or is_product(behind[:end])):
                return None  # 5xy: a product
            product = None if r"\text" in text or end < len(behind) else read_expression(text)
            return Measured(value, unit, product), behind[end:]
    return None


def _side_by_side(units: list[Unit | None]) -> bool:
    """Whether the units are different ones of a kind that stands side by side, as hours and minutes."""
    names = [next(iter(unit.powers))[0] if unit and len(unit.powers) == 1 and not unit.words else "" for unit in units]
    return any(all(name in family for name in names) for family in _COMPOUND) and len(set(names)) == len(names)


def is_product(letters: str) -> bool:
    return len(letters) <= 3 and _PRODUCT.fullmatch(letters) is not None


def clock(text: str) -> tuple[int, int, str] | None:
    """Read a time of day as hour, minute and ``am``, ``pm`` or ""; None where it has neither minutes nor these."""
    match = _CLOCK.fullmatch(text)
    if not match or not (match.group(2) or match.group(3)):
        return None
    hour, minute, half = match.groups()
    if int(hour) > 24 or int(minute or 0) > 59:
        return None
    return int(hour), int(minute or 0), (half or "").replace(".", "").lower()
