r"""Reads units: what may stand behind a number without changing it.

A unit is a product of powers of those in the tables - SI with prefixes, customary, time, money, angles - or a plural
noun of things counted. Words that negate or change a number, and doubtful ones, are no units.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from spo_core.verify.exact.number_words import NUMBER_WORDS
from spo_core.verify.exact.unit_words import CHANGES, COMPOUNDS, COUNTED, IRREGULAR, SYMBOLS, VERB_OR_ADVERB, WORDS

GENERIC = frozenset(["unit", "units"])
_AMOUNT_OF = frozenset([
    "profit", "revenue", "income", "total", "cost", "price", "salary", "savings", "budget", "tip", "tax",
    "cash", "bonus", "fee", "discount", "interest", "chance", "probability",
])  # fmt: skip
_TOKEN = re.compile(
    r"\\(?:Omega|mu|cdot|times|frac)(?![a-zA-Z])|\\%|\\\$|\^\\circ|\^\{?-?\d\}?|[A-Za-z][A-Za-z'.]*|[μΩ°]|[/(){}*·-]"
)
_MOST_WORDS = 6


@dataclass(frozen=True, slots=True)
class Unit:
    """Units of the tables with their powers, and words for things counted."""

    powers: frozenset[tuple[str, int]]
    words: frozenset[str] = frozenset()
    per: frozenset[str] = frozenset()
    """Words for things counted in the denominator."""
    sure: bool = True
    """False for words that may be no unit: they agree with the same words only."""

    def is_single(self, name: str) -> bool:
        return self.powers == frozenset([(name, 1)])


DEGREES = Unit(frozenset([("degree", 1)]))
PERCENT = Unit(frozenset([("%", 1)]))
DOLLARS = Unit(frozenset([("$", 1)]))
ORDINAL = Unit(frozenset([("th", 1)]))
_LOOSE = {"degree": ("degreeC", "degreeF"), "pound": ("lb", "sterling")}
"""Names that may be short for other units."""


def agree(one: Unit | None, other: Unit | None) -> bool:
    """Whether amounts with these units may be the same answer; None: no unit is named."""
    if one is None or other is None:
        return all(unit is None or unit.sure for unit in (one, other))
    if one == other:
        return True
    for this, that in ((one, other), (other, one)):
        if this.words & GENERIC:
            return not any(that.is_single(name) for name in ("%", "degree", "th"))
        for short, full in _LOOSE.items():
            if this.is_single(short) and any(that.is_single(name) for name in full):
                return True
    if bool(one.words) != bool(other.words):
        return one.powers == other.powers and one.sure and other.sure
    if not (one.words <= other.words or other.words <= one.words):
        return False
    if one.per and other.per and not (one.per <= other.per or other.per <= one.per):
        return False
    return one.powers == other.powers or (bool(one.words) and not (one.powers and other.powers))


def parse_unit(text: str, *, symbols: bool = True, money: bool = False) -> Unit | None:
    r"""Read the whole ``text`` as a unit, as ``\text{ m}/\text{s}^{2}`` or ``red apples per day``; None if it is none.

    ``symbols``: whether a single letter outside ``\text`` may be a unit; ``money``: whether the text is behind an
    amount of money, as "profit" may be.
    """
    try:
        return _Parser(text.replace("[", "(").replace("]", ")"), symbols, money).whole()
    except (ValueError, IndexError):
        return None


class _Parser:
    def __init__(self, text: str, symbols: bool, money: bool) -> None:
        self.money = money
        self.tokens: list[str] = []
        position = 0
        for match in re.finditer(r"\\(?:text|mathrm)\{([^{}]*)\}|((?:\\(?!text\{|mathrm\{)|[^\\])+)", text):
            self._add(match[1] if match[1] is not None else match[2], symbols or match[1] is not None)
            position = match.end()
        if position != len(text) or not self.tokens:
            raise ValueError
        self.position = 0
        self.powers: dict[str, int] = {}
        self.words: list[str] = []
        self.per: list[str] = []

    def _add(self, text: str, symbols: bool) -> None:
        position = 0
        while position < len(text):
            if text[position] in " ~":
                position += 1
                continue
            match = _TOKEN.match(text, position)
            if not match:
                raise ValueError
            token = match.group()
            if not symbols and len(token) == 1 and token.isalpha() and token.isascii():
                raise ValueError
            self.tokens.append(token)
            position = match.end()

    def _peek(self, ahead: int = 0) -> str:
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else ""

    def whole(self) -> Unit:
        if len(self.tokens) > 3 * _MOST_WORDS:
            raise ValueError
        sign = 1
        if self._peek() in ("/", "per") or (self._peek() in ("a", "an") and (self.money or self._peek(1) in WORDS)):
            self.position += 1
            sign = -1
        heads: list[str] = []  # words before the first "of"
        of = False
        self._factor(sign)
        while self._peek():
            token = self._peek()
            if token in ("/", "per"):
                self.position += 1
                self._factor(-1)
            elif token in (r"\cdot", r"\times", "*", "·", "-"):
                self.position += 1
                self._factor(1)
            elif token in ("a", "an") and self.powers and not self.per:
                self.position += 1
                self._factor(-1)
            elif token == "of" and not self.per and (self.powers or self.words):
                self.position += 1
                heads = heads or self.words[-1:]
                of = bool(self.powers) and not heads
                self._noun(1)
            else:
                self._factor(1)
        sure = not self.words or bool(of) or _is_plural((heads or self.words)[-1]) or self._is_amount_of(self.words)
        powers = frozenset((name, power) for name, power in self.powers.items() if power)
        words = frozenset(map(singular, self.words))
        if not powers and not words and not self.per:
            raise ValueError
        return Unit(powers, words, frozenset(map(singular, self.per)), sure)

    def _is_amount_of(self, words: list[str]) -> bool:
        """Whether the words tell what an amount of money or a percentage is, as in "20 percent discount"."""
        return len(words) == 1 and words[0] in _AMOUNT_OF and (self.money or not {"$", "%"}.isdisjoint(self.powers))

    def _factor(self, sign: int) -> None:
        token = self.tokens[self.position]
        if token == "(":
            self.position += 1
            while self._peek() != ")":
                if self._peek() in (r"\cdot", r"\times", "*", "·", "-"):
                    self.position += 1
                self._factor(sign)
            self.position += 1
            return
        if token in ("square", "sq", "sq.", "cubic", "cu", "cu."):
            self.position += 1
            self._known(sign * (2 if token.startswith("sq") else 3))
            return
        if token in ("the", "The"):
            self.position += 1
        if not self._known(sign, must=False):
            self._noun(sign)

    def _known(self, power: int, *, must: bool = True) -> bool:
        """Read a unit of the tables and its power; False without one, or ValueError with ``must``."""
        name, length = self._name()
        if name is None:
            if must and self.tokens[self.position].casefold() in GENERIC:
                self.words.append("unit")
                self.position += 1
                return True
            if must:
                raise ValueError
            return False
        self.position += length
        token = self._peek()
        if token.startswith("^") and token != r"^\circ":
            power *= int(token.strip("^{}"))
            self.position += 1
        elif token in ("squared", "cubed"):
            power *= 2 if token == "squared" else 3
            self.position += 1
        for unit, times in COMPOUNDS.get(name, {name: 1}).items():
            self.powers[unit] = self.powers.get(unit, 0) + power * times
        return True

    def _name(self) -> tuple[str | None, int]:
        token = self.tokens[self.position]
        following = self.tokens[self.position + 1] if self.position + 1 < len(self.tokens) else ""
        if token in (r"\mu", "μ"):
            return (f"μ{following}", 2) if f"μ{following}" in SYMBOLS else (None, 0)
        if token in (r"\Omega", "Ω"):
            return "ohm", 1
        if following in (r"\Omega", "Ω") and token in ("k", "M", "m", "G"):
            return token + "ohm", 2
        if token in (r"^\circ", "°") or token.casefold() in ("degree", "degrees", "deg"):
            scale = {
                "c": "degreeC",
                "f": "degreeF",
                "celsius": "degreeC",
                "centigrade": "degreeC",
                "fahrenheit": "degreeF",
            }
            found = scale.get(following.casefold())
            return (found, 2) if found else ("degree", 1)
        if token.casefold() in ("pound", "pounds") and following == "sterling":
            return "sterling", 2
        if token in (r"\%", r"\$"):
            return token[1:], 1
        if token.casefold() == "fl" or token.casefold() == "fl.":
            return ("floz", 2) if following.rstrip(".") in ("oz", "ounces", "ounce") else (None, 0)
        bare = token if len(token) == 1 else token.rstrip(".")
        if bare in SYMBOLS:
            return SYMBOLS[bare], 1
        lower = bare.casefold()
        if lower in COMPOUNDS:
            return lower, 1
        return (WORDS[lower], 1) if lower in WORDS and len(lower) > 1 else (None, 0)

    def _noun(self, sign: int) -> None:
        """Read words for things counted; the unit is ``sure`` only if the last is a plural."""
        begin = self.position
        while self._peek() and (self._peek()[0].isalpha() or self._peek() == "-"):
            word = self._peek().casefold()
            if word in ("per", "of"):
                break
            if word == "more" and self.position == begin and self._peek(1)[:1].isalpha():
                self.position += 1  # 5 more apples
                continue
            if word != "-" and not _may_count(word):
                raise ValueError
            if word in GENERIC and self._peek(1).startswith("^"):
                self.position += 1  # units^2
            if word != "-":
                (self.words if sign > 0 else self.per).append(word.rstrip("."))
            self.position += 1
            if len(self.words) > _MOST_WORDS:
                raise ValueError
        if begin == self.position:
            raise ValueError


def changes(word: str) -> bool:
    """Whether a word in lower case negates or changes a number beside it, or is a number."""
    if word in COUNTED:
        return False
    stems = {word, word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("'s")}
    return bool(stems & (NUMBER_WORDS | CHANGES)) or re.fullmatch(r"\w*illions?(?:ths?)?", word) is not None


def _may_count(word: str) -> bool:
    bare = word.rstrip(".")
    return len(bare) > 2 and not changes(bare) and re.fullmatch(r"[a-z.']+", word) is not None


def _is_plural(word: str) -> bool:
    if word in IRREGULAR or word in GENERIC:
        return True
    return word.endswith("s") and not VERB_OR_ADVERB.fullmatch(word)


def singular(word: str) -> str:
    """The singular of ``apples``, ``boxes`` and ``candies``."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if re.search(r"(?:s|x|z|ch|sh)es$", word):
        return word[:-2]
    return word if word.endswith(("ss", "us")) else word.removesuffix("s")
