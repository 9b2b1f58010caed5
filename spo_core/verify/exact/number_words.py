"""English words for numbers: cardinals, ordinals, magnitudes, parts."""

from __future__ import annotations

from fractions import Fraction

_SMALL = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SMALL_ORDINALS = [
    "zeroth", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
    "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth",
    "nineteenth",
]  # fmt: skip
CARDINALS = {word: number for number, word in enumerate(_SMALL)} | {
    word: 10 * number for number, word in enumerate(_TENS, start=2)
}
_ILLIONS = [
    "million", "billion", "trillion", "quadrillion", "quintillion", "sextillion", "septillion", "octillion",
    "nonillion", "decillion",
]  # fmt: skip
MAGNITUDES = {"thousand": 10**3, "lakh": 10**5, "crore": 10**7} | {
    word: 10 ** (3 * number) for number, word in enumerate(_ILLIONS, start=2)
}
SPELT_MAGNITUDES = (
    MAGNITUDES
    | {"mn": 10**6, "bn": 10**9, "lac": 10**5}
    | {f"{word}s": value for word, value in MAGNITUDES.items() if word in ("lakh", "crore")}
)
COUNTS = {"dozen": 12, "score": 20, "gross": 144}
ORDINALS = (
    {word: number for number, word in enumerate(_SMALL_ORDINALS)}
    | {f"{word[:-1]}ieth": 10 * number for number, word in enumerate(_TENS, start=2)}
    | {
        f"{ten}-{_SMALL_ORDINALS[unit]}": 10 * number + unit
        for number, ten in enumerate(_TENS, start=2)
        for unit in range(1, 10)
    }
    | {f"{word}th": value for word, value in {"hundred": 100, **MAGNITUDES}.items()}
)
PARTS = {name: number for name, number in ORDINALS.items() if number > 2} | {"half": 2, "quarter": 4}
PARTS |= {f"{tens}-{name}": value * number for tens, value in (("ten", 10), ("hundred", 100))
           for name, number in (("thousandth", 1000), ("millionth", 10**6), ("billionth", 10**9))}  # fmt: skip
FRACTIONS = {f"{name}s": number for name, number in PARTS.items() if name != "half"} | {"halves": 2}
_OPERATIONS = [
    "plus", "minus", "times", "over", "out", "divided", "multiplied", "squared", "cubed", "factorial", "halved",
    "doubled", "tripled", "quadrupled", "choose", "raised", "power", "root", "square", "cube", "negative",
    "twice", "double", "triple", "point", "and", "to", "by", "of", "half", "quarter",
]  # fmt: skip
RAISED = {"squared": 2, "cubed": 3}
SCALED = {"halved": Fraction(1, 2), "doubled": Fraction(2), "tripled": Fraction(3), "quadrupled": Fraction(4)}
LEADING = {"twice": Fraction(2), "double": Fraction(2), "triple": Fraction(3)}
NUMBER_WORDS = frozenset([*CARDINALS, *SPELT_MAGNITUDES, "hundred", *COUNTS, *ORDINALS, *PARTS, *FRACTIONS]) - {
    "second"
}
"""Words that name a number, alone or in part."""
VOCABULARY = NUMBER_WORDS | set(_OPERATIONS) | {"a", "an", "the", "second"}
