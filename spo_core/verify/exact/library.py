r"""Reads integrals, limits and determinants with math-verify.

math-verify is too lenient to read everything (see ``expressions``). It is given texts that hold one of these signs and
nothing that it is known to misread; the expression it returns is computed, and compared exactly like any other.
"""

from __future__ import annotations

import logging
import re
from typing import Any

_LONGEST = 300
_DEEPEST = 8  # brackets within brackets; each costs the parser a tenth of a second
_SIGN = re.compile(r"\\(?:int|lim|begin\{vmatrix\})(?![a-zA-Z])")


def read_by_library(text: str) -> Any | None:
    """Read and compute a sympy expression; None where ``text`` holds none of the signs or is not one expression.

    May take forever: callers limit its time.
    """
    if not _SIGN.search(text) or len(text) > _LONGEST or _depth(text) > _DEEPEST or _misread(text):
        return None
    import sympy
    from math_verify import LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns that its time limit is off
    found = parse(
        f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None, raise_on_error=False
    )
    if not found or not isinstance(found[0], sympy.Expr):
        return None
    value = found[0].doit()
    return None if value.has(sympy.Float, sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit) else value


def _misread(text: str) -> bool:
    """Whether the text has what math-verify misreads: double signs, numbers side by side, decimals, lists, words..."""
    bare = re.sub(r"\\(?:begin|end)\{vmatrix\}|\\[a-zA-Z]+", "@", text)
    words = re.findall(r"[a-zA-Z]{2,}", bare)
    odd = re.search(r"[-+]\s*[-+]|\d\s+\d|[.,<>=]", bare) is not None or r"\text" in text
    return odd or not all(re.fullmatch(r"[a-zA-Z]?d[a-z]", word) for word in words)  # xdx


def _depth(text: str) -> int:
    deepest = depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest
