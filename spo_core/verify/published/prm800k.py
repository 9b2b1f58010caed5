r"""The published MATH grader for answers with a prefix, for comparison (docs/reference.md 4.3).

There are two normalisations of the text given: answers are the same if their texts are equal after the first, or pass
the rules after the second. It is wrong in places, and kept so: ``\frac{10}{2}`` is not 5, ``50\%`` is 50. Of the 53
pairs of grader_pairs.json it gets 40 right. Where the reference is silent: the list of unit words, a million is
``*10^6`` (so not an integer), and mixed numbers have a plus put in.
"""

from __future__ import annotations

import re

from spo_core.verify.outcome import Outcome
from spo_core.verify.published.sympy_text import (
    LONGEST,
    brace_fractions,
    brace_roots,
    may_evaluate,
    same_by_sympy,
    slash_as_fraction,
)

_WHOLE_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_UNIT_WORDS = (
    "degree|centimeter|kilometer|meter|cm|mile|foot|feet|inch|yard|second|minute|hour|day|week|month|year|"
    "dollar|cent|unit|point"
)
_UNITS = re.compile(rf"(?<![a-z\\])(?:{_UNIT_WORDS})(?:es|s)?(?![a-z])\s*(?:\^\{{?\d\}}?)?")
_POWERS = {"million": 6, "billion": 9, "trillion": 12}
_MILLIONS = re.compile(rf"\s*(?<![a-z\\])({'|'.join(_POWERS)})s?(?![a-z])")
_SIMPLE_FRACTION = re.compile(r"(-?)\\frac\{(-?\d+)\}\{(-?\d+)\}", re.ASCII)
_MIXED = re.compile(r"(\d)\s+(?=\d+/\d)|(\d)\s*(?=\\frac\{\d+\}\{\d)", re.ASCII)
_COMMAS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?", re.ASCII)
_NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)", re.ASCII)
_FRACTION = re.compile(r"-?\d+/-?\d+", re.ASCII)
_OPEN, _CLOSE = "([", ")]"


def compare(given: str, gold: str) -> Outcome:
    """CORRECT where the answers are equal after the published normalisations, or by the published rules for tuples,
    integers and fractions; else WRONG."""
    if given.strip() == gold.strip():
        return Outcome.CORRECT
    if max(len(given), len(gold)) > LONGEST:
        return Outcome.WRONG
    same = _hendrycks(given) == _hendrycks(gold) or _same(_normal(given), _normal(gold))
    return Outcome.CORRECT if same else Outcome.WRONG


def _unwrapped(text: str) -> str:
    match = _WHOLE_TEXT.fullmatch(text.strip())
    return (match[1] if match else text).strip()


def _hendrycks(text: str) -> str:
    """Apply the first normalisation: spellings of LaTeX."""
    text = _unwrapped(text).replace("\n", "").replace(r"\!", "").replace("\\\\", "\\")
    text = re.sub(r"\\[td]frac", r"\\frac", text)
    text = re.sub(r"\\left|\\right|\^\{\\circ\}|\^\\circ|\\\$", "", text)
    text = text.split(r"\text{ ", 1)[0].replace(r"\%", "")  # units, which are written with a space
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    text = "0" + text if text.startswith(".") else text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0].strip()) <= 2:  # k=
        text = sides[1]
    text = brace_fractions(brace_roots(text).replace(" ", ""))
    return r"\frac{1}{2}" if text == "0.5" else slash_as_fraction(text)


def _normal(text: str) -> str:
    """Apply the second: percent and dollar signs, unit words, large numbers as words, mixed numbers, letter case."""
    text = re.sub(r"\\?[%$]", "", _unwrapped(text)).lower()
    text = _WHOLE_TEXT.sub(r" \1 ", text)
    text = re.sub(r"\s(?:or|and)\s", ",", text)
    text = _MILLIONS.sub(lambda match: f"*10^{_POWERS[match[1]]}", text)
    text = re.sub(r"\^\s*(?:\\circ|\{\\circ\})", "", _UNITS.sub("", text))
    text = re.sub(r",?\\!\s*|\\left|\\right", "", text)
    text = brace_fractions(brace_roots(re.sub(r"\\[td]frac", r"\\frac", text)))
    text = re.sub(r"\s+", "", _MIXED.sub(r"\1\2+", text))
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    if _COMMAS.fullmatch(text):
        text = text.replace(",", "")
    whole = _integer(text)
    return text if whole is None else str(whole)


def _plain(text: str) -> str:
    """Remove braces, to compare as text and to judge whether sympy may be asked."""
    return re.sub(r"\\?[{}]", "", text)


def _slashed(text: str) -> str:
    """Write a fraction of two integers, if ``text`` is one, as ``a/b``."""
    match = _SIMPLE_FRACTION.fullmatch(text)
    return f"{match[1]}{match[2]}/{match[3]}" if match else text


def _integer(text: str) -> int | None:
    """The value of an integer such as ``7``, ``007`` or ``7.0``; None for other text."""
    if not _NUMBER.fullmatch(text):
        return None
    whole, _, rest = text.partition(".")
    return int(whole or 0) if not rest.strip("0") and whole not in ("", "-") else None


def _items(text: str) -> list[str]:
    """Items of a tuple or interval without brackets inside; other text is one item."""
    if len(text) > 2 and text[0] in _OPEN and text[-1] in _CLOSE and not set(text[1:-1]) & set(_OPEN + _CLOSE):
        return text[1:-1].split(",")
    return [text]


def _same(given: str, gold: str) -> bool:
    if not given or not gold:
        return False
    if _plain(given) == _plain(gold):
        return True
    given_items, gold_items = _items(given), _items(gold)
    if len(given_items) != len(gold_items):
        return False
    if len(gold_items) > 1 and (given[0], given[-1]) != (gold[0], gold[-1]):  # the kind of brackets counts
        return False
    return all(_same_item(*pair) for pair in zip(given_items, gold_items, strict=True))


def _same_item(given: str, gold: str) -> bool:
    plain, gold_plain = (_plain(_slashed(text)) for text in (given, gold))
    if plain == gold_plain:
        return True
    if _FRACTION.fullmatch(plain) and _FRACTION.fullmatch(gold_plain):
        return False  # a fraction must be reduced as the gold answer is
    if _integer(plain) is not None or _integer(gold_plain) is not None:
        return _integer(plain) == _integer(gold_plain)
    return may_evaluate(f"({gold_plain})-({plain})") and same_by_sympy(given, gold)
