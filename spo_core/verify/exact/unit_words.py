"""Tables for ``units``: units by name, and words behind a number that are no units."""

from __future__ import annotations

import re

from spo_core.verify.exact.spellings import CALLED, FUNCTIONS

_SI = {
    "m": "meter metre", "g": "gram gramme", "s": "second sec", "A": "ampere amp", "K": "kelvin", "mol": "mole",
    "cd": "candela", "Hz": "hertz", "N": "newton", "Pa": "pascal", "J": "joule", "W": "watt", "C": "coulomb",
    "V": "volt", "F": "farad", "ohm": "ohm", "S": "siemens", "Wb": "weber", "T": "tesla", "H": "henry", "lm": "lumen",
    "lx": "lux", "Bq": "becquerel", "Gy": "gray", "Sv": "sievert", "L": "liter litre", "eV": "electronvolt",
    "B": "byte", "bit": "", "cal": "calorie", "Wh": "watthour", "rad": "radian",
}  # fmt: skip
_PREFIXES = {
    "": "", "p": "pico", "n": "nano", "μ": "micro", "m": "milli", "c": "centi", "d": "deci", "h": "hecto", "k": "kilo",
    "M": "mega", "G": "giga", "T": "tera",
}  # fmt: skip
_OTHERS = {
    "in": "inch inche", "ft": "foot feet", "yd": "yard", "mi": "mile", "lb": "", "pound": "",
    "sterling": "quid gbp", "oz": "ounce", "gal": "gallon",
    "qt": "quart", "pt": "pint", "cup": "", "tbsp": "tablespoon", "tsp": "teaspoon", "acre": "", "ha": "hectare",
    "ton": "tonne", "stone": "", "knot": "", "min": "minute", "h": "hr hour", "day": "", "week": "wk", "month": "",
    "year": "yr", "decade": "", "century": "centurie", "$": "dollar usd buck", "cent": "penny pennie pence", 
    "euro": "eur",
    "rupee": "inr", "yen": "jpy", "yuan": "rmb", "won": "", "peso": "", "franc": "", "ruble": "rouble",
    "degree": "deg", "degreeC": "celsius", "degreeF": "fahrenheit", "arcmin": "arcminute", "arcsec": "arcsecond",
    "%": "percent pct", "rev": "revolution", "psi": "", "atm": "atmosphere", "bar": "", "hp": "horsepower",
    "dB": "decibel", "ppm": "", "furlong": "", "fathom": "", "parsec": "",
}  # fmt: skip
COMPOUNDS = {
    "mph": {"mi": 1, "h": -1}, "kmph": {"km": 1, "h": -1}, "kph": {"km": 1, "h": -1}, "kmh": {"km": 1, "h": -1},
    "rpm": {"rev": 1, "min": -1},
    "cc": {"cm": 3}, "mpg": {"mi": 1, "gal": -1}, "fps": {"ft": 1, "s": -1},
}  # fmt: skip
_ANY_CASE = [
    "mm", "cm", "km", "mg", "kg", "ml", "cl", "dl", "kw", "kwh", "khz", "mhz", "ghz", "kb", "mb", "gb", "kpa",
    "kj", "kcal", "in", "ft", "yd", "mi", "lb", "oz", "gal", "qt", "hr", "yr", "wk", "min", "mol", "hz",
]  # fmt: skip
_AMBIGUOUS = frozenset(["cd", "hm", "ds", "cs"])
"""Prefix and unit together that are probably no unit."""


def _table() -> tuple[dict[str, str], dict[str, str]]:
    """Two mappings to the name of a unit: from symbols, whose case counts, and from words, whose case does not."""
    symbols = {short + unit: short + unit for unit in _SI for short in _PREFIXES}
    symbols |= {short + "l": short + "L" for short in _PREFIXES}
    words = {
        long + name: short + unit
        for unit, names in _SI.items()
        for name in names.split()
        for short, long in _PREFIXES.items()
    }
    for unit, names in _OTHERS.items():
        symbols[unit] = unit
        words |= {name: unit for name in names.split()}
        if len(unit) > 2:
            words[unit] = unit
    words |= {f"{name}s": unit for name, unit in words.items()}
    words |= {"gm": "g", "gms": "g", "kilo": "kg", "kilos": "kg", "secs": "s", "centigrade": "degreeC"}
    words |= {
        symbol.lower() + ending: unit
        for symbol, unit in list(symbols.items())
        if symbol.lower() in _ANY_CASE
        for ending in ("", "s")
    }
    return {symbol: unit for symbol, unit in symbols.items() if symbol not in _AMBIGUOUS}, words


SYMBOLS, WORDS = _table()
"""Spellings of units, with their one name."""

# numbers, operations, comparisons, negations, verbs: words that change the meaning of a number before them
_CHANGING = """
    and or not no nor but is isn isn't are aren't was wasn't were be been am if when then than else more less least most
    fewer few many much to half halves squared cubed factorial factorials times plus minus mod modulo modulus remainder
    remainders base bases divided over under between maybe perhaps possibly probably wrong false incorrect right true
    does doesn't do don't did didn't can cannot can't could should would will won't might may must has have had hasn't
    either neither with without zero twice double doubled doubles triple tripled triples halved thrice each except
    unless instead through until about approximately nearly almost around roughly exactly solutions solution undefined
    choose chosen multiplied raised power powers by infinity infinite pi below above negative positive negatives
    positives imaginary complex root roots square squares cube cubes log logs logarithm logarithms exponent exponents
    inverse inverses reciprocal reciprocals opposite opposites absolute modulo multiple multiples digit digits decimal
    decimals place places significant figure figures term terms sum sums difference product quotient ratio ratios
    impossible invalid never always sometimes also too only just equals equal exceeds means makes gives fails works fits
    exists applies becomes remains follows holds off short lost missing extra else unknown unclear unsolved unless
    others otherwise thus hence as so because since plus less yes perhaps is was versus vs unlike regardless besides
    hundreds thousands millions billions trillions dozens tens ones dozen dozens score scores pair pairs couple couples
    hundred thousand million billion trillion quadrillion quintillion lakh crore gross even odd prime ish ths th nd rd
    st ten teen point dot comma slash dash divides doubles inches's first second's last next previous mirrors factors
    combinations permutations percent's guess guesses rejected reject discard wrongs errors error mistakes mistake
    minuses pluses zeros zeroes zeroth nulls nothing none nothings degrees' deficits losses debts negations complements
    choices lots surds numerators denominators fractions percentiles singles trios duos sans naturals
    reals doubles rounded truncated approximated inverted reversed negated swapped flipped estimated
    derivatives integrals sines cosines tangents radicals conjugates vectors
    primes sets series eliminated excluded extraneous estimate estimated approx crossed unlikely assumed
"""
CHANGES = frozenset([*_CHANGING.split(), *FUNCTIONS, *CALLED])
VERB_OR_ADVERB = re.compile(
    r".*(?:ly|ths|'s|wise|ward|wards|ness|less|less|(?:[aeiou]ss|is|us)|ieth|nth|inths|undredth)$"
)
COUNTED = frozenset(["points", "marks", "cubits", "solutions"])
"""Plurals of things counted whose singular may change a number."""
IRREGULAR = {
    "people": "person", "persons": "person", "children": "child", "men": "man", "women": "woman", "mice": "mouse",
    "geese": "goose", "teeth": "tooth", "sheep": "sheep", "fish": "fish", "deer": "deer", "oxen": "ox", "dice": "die",
    "leaves": "leaf", "loaves": "loaf", "knives": "knife", "shelves": "shelf", "person": "person", "child": "child",
    "buses": "bus", "lenses": "lens", "classes": "class", "glasses": "glass", "dresses": "dress",
}  # fmt: skip
