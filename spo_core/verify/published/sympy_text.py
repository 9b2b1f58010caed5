r"""Shared by the two published mathematics graders: spellings of roots and fractions, and comparison with sympy.

docs/reference.md 4.2 and 4.3. A policy's text is never evaluated as code: LaTeX goes through a grammar. The published
graders stop sympy after 15 s; here time and memory are limited by the worker process, so MemoryError alone is raised.
"""

from __future__ import annotations

import math
import re
from typing import Any

LONGEST = 2000
"""Characters; longer texts are equal only to themselves, as some patterns take quadratic time."""
LONGEST_PARSED = 200
"""Characters; longer texts are not given to sympy."""

_KNOWN_WORDS = re.compile(r"sqrt|frac")
_REFUSED = re.compile(r"\^\{|\^\(|\d{3,}!|\^\d\d|\^\d+\^")  # powers of unknown size, large ones, towers, factorials
_BARE_ROOT = re.compile(r"\\sqrt\s*([^\W_])")
_BARE_FRACTION = re.compile(r"\\frac\s*([^\W_])(?:([^\W_])|(?=\{))")
_SLASH = re.compile(r"(-?\d+)/(-?\d+)", re.ASCII)
_DIGIT_THEN_FRACTION = re.compile(r"(\d)\s*\\frac")


def brace_roots(text: str) -> str:
    r"""Write ``\sqrt2`` as ``\sqrt{2}``."""
    return _BARE_ROOT.sub(r"\\sqrt{\1}", text)


def brace_fractions(text: str) -> str:
    r"""Write ``\frac12`` and ``\frac1{2}`` as ``\frac{1}{2}``."""
    return _BARE_FRACTION.sub(
        lambda match: rf"\frac{{{match[1]}}}" + (f"{{{match[2]}}}" if match[2] is not None else ""), text
    )


def slash_as_fraction(text: str) -> str:
    r"""Write ``a/b`` of two integers, if ``text`` is that, as ``\frac{a}{b}``."""
    match = _SLASH.fullmatch(text)
    return rf"\frac{{{match[1]}}}{{{match[2]}}}" if match else text


def may_evaluate(text: str) -> bool:
    """Whether sympy may be asked, as published: at most two letters besides root and fraction, no large powers."""
    letters = {character for character in _KNOWN_WORDS.sub("", text) if character.isalpha()}
    return len(letters) <= 2 and not _REFUSED.search(text)


def parse(text: str) -> Any | None:
    """Read ``text`` as a sympy expression; None where it is none (as relations, sets and matrices)."""
    if not text or len(text) > LONGEST_PARSED:
        return None
    import sympy
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    config = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False)
    # the parser would read a digit before a fraction as a mixed number; the published one multiplies
    text = _DIGIT_THEN_FRACTION.sub(r"\1\\cdot\\frac", text)
    try:
        expression = latex2sympy(text, normalization_config=None, conversion_config=config)
    except MemoryError:
        raise
    except Exception:  # the grammar raises bare Exception, the conversion errors of many types
        return None
    return expression if isinstance(expression, sympy.Expr) else None


def same_by_sympy(given: str, gold: str, tolerance: float | None = None) -> bool:
    """Whether the difference simplifies to zero or, with a tolerance, the values differ by no more than that."""
    left, right = parse(given), parse(gold)
    if left is None or right is None:
        return False
    import sympy

    try:
        if sympy.simplify(left - right) == 0:
            return True
    except MemoryError:
        raise
    except Exception:  # simplify raises many kinds of error on odd expressions
        pass
    if tolerance is None:
        return False
    try:
        return math.isclose(float(sympy.N(left)), float(sympy.N(right)), abs_tol=tolerance)
    except MemoryError:
        raise
    except Exception:  # symbols and complex values have no float
        return False
