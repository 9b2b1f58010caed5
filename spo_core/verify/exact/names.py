r"""Left sides that only name the answer: ``x``, ``f(3)``, ``P(X=2)``, ``|A\cup B|``, ``\angle A``, "Area".

``2a`` and ``\sqrt{x}`` name nothing: ``2a = 10`` does not say 10.
"""

from __future__ import annotations

import re

from spo_core.verify.exact.nodes import VARIABLE
from spo_core.verify.exact.units import changes

_BRACKETED = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
_ARGUMENT = rf"(?:{VARIABLE}|-?[\d./]+|\\frac\{{-?\d+\}}\{{\d+\}}|\\pi|\\infty)"
_CALL = rf"[a-zA-Z]\({_ARGUMENT}(?:,{_ARGUMENT})*\)"
_CAPITALS = r"\{?[A-Z]{1,5}\}?"
_MARK = rf"\\(?:angle|overline|triangle|hat|overrightarrow|widehat|bar|tilde) ?(?:{_CAPITALS}|\{{?{VARIABLE}\}}?)"
_ANGLE = rf"(?:[A-Z]|\\angle ?{_CAPITALS}|\\(?:theta|alpha|beta|gamma|phi)|\(?\\angle ?{_CAPITALS}\)?|\([A-Z]\))"
_NAMES = (
    rf"(?:{VARIABLE}'*(?:\^\{{(?:\*|\([a-z\d]\)|\\prime)\}})?|[A-Zfgh]\^\{{(?:-1|T|\\top|c)\}})(?:\((?:{_ARGUMENT}|{_CALL})(?:[,|;](?:{_ARGUMENT}|{_CALL}))*\))?",
    rf"(?:[fghFGHPQpq]|\\(?:phi|psi|Gamma|zeta))(?:'*|_\{{[^{{}}]*\}}|\^\{{-1\}}){_BRACKETED}",  # f(x+1), P(X=2)
    rf"(?:E|P|V|\\Pr|\\mathbb\{{[EPV]\}}|\\text\{{ ?\w+ ?\}}|\\?Var|Cov)(?:\[[^\[\]]+\]|{_BRACKETED})",
    rf"\\(?:det|dim|deg|tr|arg|Re|Im)(?: ?{VARIABLE}|{_BRACKETED})",
    rf"\|{_CAPITALS}\||\|\\text\{{[A-Z]{{2}}\}}\||\|[uvwz](?:_\{{\d\}})?\|",
    r"(\|?)[A-Z](?: ?\\(?:cup|cap|setminus|times) ?[A-Z])+\1|\\\|[^|]+\\\||\\#\|?[A-Z]\|?",
    rf"\\Delta {VARIABLE}|\\sigma(?:_\{{[^{{}}]*\}})?\^\{{2\}}",
    rf"\\(?:max|min|sup|inf)(?:_\{{[^{{}}]*\}})? ?{VARIABLE}(?:{_BRACKETED})?",
    r"\\text\{[A-Z]{2}\}\\cdot ?\\text\{[A-Z]{2}\}|\\frac\{\[?[A-Z]{2,4}\]?\}\{\[?[A-Z]{2,4}\]?\}",
    r"[a-zA-Z]+(?::[a-zA-Z]+)+",
    rf"n\([A-Z][^()]*\)|[A-Z]{{2,4}}|m?{_MARK}|\[[A-Z]+\]",
    rf"\(?[a-zA-Z](?:\\circ ?[a-zA-Z])+\)?(?:{_BRACKETED})?",
    r"[a-zA-Z](?:\+[a-zA-Z])+",
    rf"(?:\(|\\langle ?){VARIABLE}(?:,{VARIABLE})+(?:\)|\\rangle)",
    r"\\frac\{(?:d|\\partial) ?(?:\^\{\d\})?[a-z]?\}\{(?:d|\\partial) ?[a-z](?:\^\{\d\})?\}(?:\([^()]*\))?",
    r"d[a-z]/d[a-z]|\\frac\{d\}\{d ?[a-z]\}(?: ?\([^=<>]*\)|[^=<>+-]*)|\\int[^=<>]*d ?[a-z]",
    r"\\(?:sum|prod)_\{[^{}]*\}(?:\^\{[^{}]*\})?[^=<>+-]*",
    rf"\\(?:sin|cos|tan|cot|sec|csc) ?{_ANGLE}",
    r"\\lim_\{[^{}]*\}[^=<>]*",
    r"(?:\\text\{[^{}]*\}|[a-zA-Z]{2,}(?: [a-zA-Z]{2,})*(?: [A-Z])?)(?:_\{[^{}]*\})?(?: ?[A-Z]{1,4})?",
)
_NAME = re.compile("|".join(_NAMES))
_SEGMENT = re.compile(rf"[A-Z]{{2}}|m?{_MARK}|\|[A-Z]{{2}}\|")
FUNCTION = re.compile(rf"((?:[a-zA-Z]|\\(?:phi|psi))(?:_\{{[^{{}}]*\}})?'*)\(({VARIABLE})\)")
"""Matches a function with its variable, ``f(x)``."""
INDEXED = re.compile(r"([a-zA-Z])_\{([a-z])\}")
"""Matches a sequence with its index, ``a_{n}``."""
LABEL = re.compile(r"\\text\{|(?<![\\a-zA-Z])[a-zA-Z]{4,}|[a-zA-Z] [a-zA-Z]")
"""Matches words, which name whatever follows them."""


def is_name(text: str) -> bool:
    """Whether ``text`` is a name; "not x" and "half of x" are none."""
    if _NAME.fullmatch(text) is None:
        return False
    words = re.findall(r"(?<![\\a-zA-Z])[a-zA-Z']{2,}", re.sub(r"_\{[^{}]*\}", "", text))
    return not any(changes(word.casefold()) for word in words)


def is_measured(text: str) -> bool:
    """Whether ``text`` is a segment or an angle: of ``AB = CD = 5`` all but the last are names."""
    return _SEGMENT.fullmatch(text) is not None


def _plainer(name: str) -> str:
    r"""Drop notation that distinguishes nothing: ``\Pr[A]`` is ``P(A)``, ``\det(A)`` is ``\det A``."""
    name = re.sub(r"\\Pr|\\mathbb\{P\}", "P", name.replace(r"\mathbb{E}", "E").replace(" ", "")).removeprefix(
        "m\\angle"
    )
    if name[:2] in ("P[", "E["):
        name = f"{name[0]}({name[2:-1]})"
    return re.sub(r"^\\(det|dim|deg|tr|angle)\(?(\w+)\)?$", r"\\\1\2", name).removeprefix(r"\angle")


def names_agree(one: str, other: str) -> bool:
    """Whether two names may stand for the same: equal names, a label in words, or y for f(x) but not x."""
    one, other = _plainer(one), _plainer(other)
    if one == other or LABEL.search(one) or LABEL.search(other):
        return True
    for variable, function in ((one, other), (other, one)):
        called = FUNCTION.fullmatch(function)
        if called and re.fullmatch(VARIABLE, variable) and variable != called.group(2):
            return True
    return False
