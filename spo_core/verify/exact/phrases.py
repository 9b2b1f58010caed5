r"""Numbers and arithmetic in English: "three hundred and five", "2.5 million", "two thirds", "5 squared", "3 choose 2".

A phrase is read from the left as far as it goes; a unit may follow. Numbers in figures or LaTeX count as words of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from spo_core.verify.exact.equality import to_sympy
from spo_core.verify.exact.expressions import read_expression
from spo_core.verify.exact.functions import of_several
from spo_core.verify.exact.huge import factorial, power
from spo_core.verify.exact.number_words import (
    CARDINALS,
    COUNTS,
    FRACTIONS,
    LEADING,
    ORDINALS,
    PARTS,
    RAISED,
    SCALED,
    SPELT_MAGNITUDES,
    VOCABULARY,
)
from spo_core.verify.exact.tokens import Unreadable

_WORD = r"(?:[A-Za-z]+(?:-[A-Za-z]+)*|(?<![\d.])\d+(?:st|nd|rd|th)(?![A-Za-z]))"
_TOKEN = re.compile(
    rf"\\text\{{(?P<text>[^{{}}]*)\}}|(?<![A-Za-z\\])(?P<word>{_WORD})|(?P<space> )|(?P<math>\\[A-Za-z]+|\\.|.)",
    re.DOTALL,
)

_GROUPED = re.compile(r"-?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?", re.ASCII)
_SIGN = re.compile(r" ?(?:\\[%$]|\^\\circ)$")


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    end: int
    """Where the token ends in the whole text."""
    is_word: bool


def read_phrase(text: str) -> tuple[Any, str] | None:
    """Read the number at the beginning of ``text``, in words or figures; returns it and the text behind, or None.

    "two thirds of a mile" gives 2/3 and " of a mile", "5 apples" 5 and " apples".
    """
    tokens = _tokens(text)
    if not tokens:
        return None
    parser = _Phrase(tokens)
    try:
        value = parser.total()
    except (Unreadable, ArithmeticError, ValueError, TypeError):
        return None
    behind = text[tokens[parser.position - 1].end :]
    if behind.count("}") > behind.count("{"):  # it ends within a \text
        behind = rf" \text{{{behind.lstrip()}"
    return value, behind


def _tokens(text: str) -> list[_Token]:
    r"""Split ``text`` into words of the vocabulary and pieces of mathematics, up to the first other word."""
    tokens: list[_Token] = []
    begin: int | None = None
    depth = 0
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        assert match
        inner = match["text"] if depth == 0 else None
        word = match["word"] if depth == 0 else None
        if inner is not None or (word is not None and (len(word) > 1 or word.casefold() in VOCABULARY)):
            if begin is not None:
                piece = text[begin:position].rstrip()
                amount = _SIGN.sub("", piece)
                tokens.append(_Token(amount, begin + len(amount), False))
                if amount != piece:
                    return tokens  # the sign begins the unit
            begin = None
            source, offset = (inner, match.start("text")) if inner is not None else (word, position)
            assert source is not None
            complete = _add_words(tokens, source, offset, match.end() if inner is not None else None)
            if not complete:
                return tokens
        elif begin is None and match["space"] is None:
            begin = position
        if word is None and inner is None:
            depth += (match.group() in ("{", "(", "[")) - (match.group() in ("}", ")", "]"))
        position = match.end()
    if begin is not None and text[begin:].strip():
        tokens.append(_Token(text[begin:].strip(), len(text), False))
    return tokens


def _add_words(tokens: list[_Token], source: str, offset: int, end: int | None) -> bool:
    """Add the words of ``source`` to ``tokens``; False at the first that is not of the vocabulary."""
    for match in re.finditer(rf"({_WORD})|([^A-Za-z\s]+)", source):
        where = offset + match.end()
        if end is not None and not source[match.end() :].strip():
            where = end  # the brace belongs to the last word
        word = match.group().casefold()
        if match[2]:
            tokens.append(_Token(match.group(), where, False))
            continue
        parts = [word] if word in VOCABULARY else word.split("-")
        if not all(part in VOCABULARY or part[0].isdigit() for part in parts):
            return False
        tokens.extend(_Token(part, where, True) for part in parts)
    return True


class _Phrase:
    """Recursive descent over tokens; methods move ``position`` behind what they read, or raise Unreadable."""

    def __init__(self, tokens: list[_Token]) -> None:
        self.tokens = tokens
        self.position = 0

    def _peek(self, ahead: int = 0) -> str:
        """The word at ``position`` plus ``ahead``, in lower case; "" if there is none."""
        index = self.position + ahead
        return self.tokens[index].text if index < len(self.tokens) and self.tokens[index].is_word else ""

    def _piece(self, ahead: int = 0) -> str:
        """The piece of mathematics at ``position`` plus ``ahead``; "" if there is none."""
        index = self.position + ahead
        return self.tokens[index].text if index < len(self.tokens) and not self.tokens[index].is_word else ""

    def _accept(self, *words: str) -> bool:
        if all(self._peek(ahead) == word for ahead, word in enumerate(words)):
            self.position += len(words)
            return True
        return False

    def total(self) -> Any:
        value = self._product()
        while self._peek() in ("plus", "minus"):
            sign = 1 if self._accept("plus") else -1
            self.position += sign == -1
            value = value + sign * self._product()
        return value

    def _product(self) -> Any:
        value = self._postfixed()
        while True:
            if self._accept("times") or self._accept("multiplied", "by"):
                value = value * self._postfixed()
            elif self._accept("divided", "by") or self._accept("over") or self._accept("out", "of"):
                value = value / self._postfixed()
            else:
                return value

    def _postfixed(self) -> Any:
        value = self._quantity()
        while word := self._peek():
            if word in RAISED:
                value = power(to_sympy(value), to_sympy(Fraction(RAISED[word])))
            elif word in SCALED:
                value = value * SCALED[word]
            elif word == "factorial":
                value = factorial(to_sympy(value))
            elif word == "choose":
                self.position += 1
                value = of_several("C", [to_sympy(value), to_sympy(self._quantity())])
                continue
            elif word in ("to", "raised"):
                value = power(to_sympy(value), to_sympy(self._exponent()))
                continue
            else:
                break
            self.position += 1
        return _plain(value)

    def _exponent(self) -> Any:
        """Read ``to the power of 5``, ``raised to the fifth power`` or ``to the fifth``."""
        self._accept("raised")
        if not self._accept("to"):
            raise Unreadable
        self._accept("the")
        if self._accept("power"):
            self._accept("of")
            return self._quantity()
        word = self._peek()
        if word in ORDINALS or word[:1].isdigit():
            self.position += 1
            self._accept("power")
            return Fraction(ORDINALS.get(word) or int(word[:-2]))
        raise Unreadable

    def _quantity(self) -> Any:
        if self._accept("negative") or self._accept("minus"):
            return -self._quantity()
        if self._peek() in LEADING:
            factor = LEADING[self._peek()]
            self.position += 1
            return factor * self._quantity()
        self._accept("the")
        roots = {"square": 2, "cube": 3, **{word: n for word, n in ORDINALS.items() if n > 1}}
        degree = roots.get(self._peek())
        if degree and self._peek(1) == "root":
            self.position += 2
            if not self._accept("of"):
                raise Unreadable
            return power(to_sympy(self._quantity()), to_sympy(Fraction(1, degree)))
        if degree and (self._accept("square", "of") or self._accept("cube", "of")):
            return power(to_sympy(self._quantity()), to_sympy(Fraction(degree)))
        if self._accept("half"):
            return self._part(Fraction(1, 2))
        return self._number()

    def _number(self) -> Any:
        """Read a cardinal and a fraction that it counts: "three quarters", "two and a half", "a third of a million"."""
        begin = self.position
        value, simple = self._cardinal()
        word = self._peek()
        if word in FRACTIONS or (word in PARTS and value == 1):
            if not simple:
                raise Unreadable  # "three hundred thousandths" is ambiguous
            self.position += 1
            return self._part(value / (FRACTIONS | PARTS)[word])
        if self._peek() == "and" and self.position > begin:
            before = self.position
            self.position += 1
            part = self._fraction()
            if part is not None:
                return self._scaled(value + part)
            self.position = before
        return value

    def _fraction(self) -> Any | None:
        """Read a proper fraction in words, as "a half" or "three quarters"; None, with nothing read, without one."""
        begin = self.position
        try:
            if self._accept("half") or self._accept("a", "half") or self._accept("one", "half"):
                return Fraction(1, 2)
            value, simple = self._cardinal()
        except Unreadable:
            self.position = begin
            return None
        word = self._peek()
        if simple and (word in FRACTIONS or (word in PARTS and value == 1)):
            self.position += 1
            part = value / (FRACTIONS | PARTS)[word]
            if 0 < part < 1:
                return part
        self.position = begin
        return None

    def _part(self, part: Any) -> Any:
        """Multiply ``part`` by the number it is a part of, as in ``half a million`` and ``a third of 12``."""
        before = self.position
        if self._accept("of") or self._peek() in ("a", "an"):
            try:
                return part * self._number()
            except Unreadable:
                self.position = before
                return part
        return self._scaled(part)

    def _scaled(self, value: Any) -> Any:
        while self._peek() in SPELT_MAGNITUDES or self._peek() == "hundred":
            value = value * ({"hundred": 100} | SPELT_MAGNITUDES)[self._peek()]
            self.position += 1
        return value

    def _cardinal(self) -> tuple[Any, bool]:
        """Read cardinals and magnitudes; returns their value, and whether there is no magnitude."""
        total: Any = Fraction(0)
        current: Any = None  # what the next magnitude multiplies
        lowest: Any = None  # place value of the last cardinal: the next one must be smaller
        simple = True
        begin = self.position
        if self._peek() in ("a", "an") and (
            self._peek(1) in SPELT_MAGNITUDES | COUNTS | PARTS or self._peek(1) == "hundred"
        ):
            self.position += 1
            current = Fraction(1)
        while True:
            word, piece = self._peek(), self._piece()
            if word == "and" and lowest is not None and lowest >= 100 and self._continues(lowest):
                self.position += 1
            elif word in CARDINALS or piece:
                value = Fraction(CARDINALS[word]) if word else read_figure(piece)
                if value is None or (lowest is not None and not self._fits(value, lowest)):
                    break
                current = value if current is None else current + value
                lowest = 10 if word and value in range(20, 100, 10) else 0  # five may follow twenty, nothing five
                self.position += 1
            elif word == "hundred" and current is not None:
                current, lowest, simple = current * 100, 100, False
                self.position += 1
            elif word in SPELT_MAGNITUDES and (current is not None or lowest is not None):
                factor = SPELT_MAGNITUDES[word]
                total = total * factor if current is None else total + current * factor
                current, lowest, simple = None, factor, False
                self.position += 1
            elif word in COUNTS and current is not None:
                current, lowest, simple = current * COUNTS[word], 0, False
                self.position += 1
            elif word == "point" and simple and (current is not None or self.position == begin):
                current = self._decimals(current or Fraction(0))
                lowest = 0
            else:
                break
        if self.position == begin or (current is None and lowest is None):
            raise Unreadable
        return total + (current if current is not None else 0), simple

    def _continues(self, lowest: Any) -> bool:
        """Whether a cardinal below ``lowest`` follows "and", and no fraction or unit of its own."""
        word, piece = self._peek(1), self._piece(1)
        value = Fraction(CARDINALS[word]) if word in CARDINALS else read_figure(piece) if piece else None
        behind = self._peek(2)
        return value is not None and self._fits(value, lowest) and behind not in FRACTIONS and behind not in PARTS

    def _fits(self, value: Any, lowest: Any) -> bool:
        return isinstance(value, Fraction) and 0 < value < lowest

    def _decimals(self, whole: Any) -> Any:
        """Read the decimals of ``three point one four``."""
        self.position += 1
        digits = ""
        while self._peek() in CARDINALS and CARDINALS[self._peek()] < 10:
            digits += str(CARDINALS[self._peek()])
            self.position += 1
        if not digits and self._piece().isdecimal():
            digits = self._piece()
            self.position += 1
        if not digits or whole.denominator != 1:
            raise Unreadable
        return whole + Fraction(int(digits), 10 ** len(digits))


def read_figure(text: str) -> Any | None:
    """Read an expression, or a number in groups of thousands; None where ``text`` is neither."""
    return read_expression(text.replace(",", "") if _GROUPED.fullmatch(text) else text)


def _plain(value: Any) -> Any:
    return Fraction(int(value.p), int(value.q)) if getattr(value, "is_Rational", False) else value
