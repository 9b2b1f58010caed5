r"""Rewrites numbers in one form: groups of thousands, decimal commas, repeating periods, powers of ten, ``10C3``."""

from __future__ import annotations

import re
from functools import partial

_GROUP = r"(?:\{,\}|,\s*\\!|\\,|\\ |~|\\;|\\:|\{\\,\}|\\!,|['’_]|\\_|\{'\})"
_THOUSANDS = re.compile(rf"(?<![\d.,_^{{\w])[1-9]\d{{0,2}}(?:{_GROUP}\s*\d{{3}})+(?![\d'])")
_SPACED_THOUSANDS = re.compile(r"(?<![\w.,/^{ ])[1-9]\d{0,2}(?: \d{3})+(?![\w/]| ?[\\/\d])", re.ASCII)
_BRACED_THOUSANDS = re.compile(r"(?<!\\)\{[1-9]\d{0,2}(?:,\d{3})+\}")
_POINTED_THOUSANDS = re.compile(r"(?<![\d.,])([1-9]\d{0,2}(?:\.\d{3})+),(\d{1,2})(?![\d.,])")
_POINTED_WHOLE = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:\.\d{3}){2,}(?![\d.,])")
_PERIOD_IN_BRACKETS = re.compile(r"(?<![\d.])(\d*\.\d*)\((\d+)\)(?![\d(])")
_DOTTED_PERIOD = re.compile(r"(\.\d*)\\dot ?(?:\{(\d)\}|(\d))(?:(\d*)\\dot ?(?:\{(\d)\}|(\d)))?")
_LINED_PERIOD = re.compile(r"(\.\d*)((?:\\overline\{\d\}){2,})")
_ENDLESS = re.compile(r"(?<![\d.])(\d*)\.(\d+) ?(?:\\ldots|\.\.\.)(?![\d.])")
_TEN_TIMES = re.compile(r"(?<=\d) ?(?:[xX]|\\text\{ ?[xX] ?\}|\\cdot x) ?(?=10 ?(?:\^|\*\*))")
_CHOOSE = re.compile(
    r"(?<![\w}])(?:\{\}|)(?:[_^] ?\{?(\w+)\}?|\{?(\d+)\}?) ?(?:\{\})?(?:C|\\(?:text|mathrm|rm)\{C\})"
    r"(?: ?_ ?\{?(\w+)\}?|\{?(\d+)\}?)(?![\w^])"
)
_ARRANGE = re.compile(_CHOOSE.pattern.replace("C", "P"))


def plain_numbers(text: str) -> str:
    """Write numbers as ``1234.5``, ``1.2\\overline{3}``, ``5\\times 10^6`` and ``\\binom{10}{3}``."""
    text = _THOUSANDS.sub(lambda match: re.sub(r"\D", "", match.group()), text)
    text = _SPACED_THOUSANDS.sub(lambda match: match.group().replace(" ", ""), text)
    text = _BRACED_THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)
    if text.count(",") == 1:
        text = _POINTED_THOUSANDS.sub(lambda match: match[1].replace(".", "") + "." + match[2], text)
    text = _POINTED_WHOLE.sub(lambda match: match.group().replace(".", ""), text)
    text = re.sub(r"(?<![a-zA-Z])\{,\}", ",", text)
    text = _PERIOD_IN_BRACKETS.sub(r"\1\\overline{\2}", text)
    text = _DOTTED_PERIOD.sub(_dotted, text)
    text = _LINED_PERIOD.sub(lambda match: rf"{match[1]}\overline{{{re.sub(r'[^0-9]', '', match[2])}}}", text)
    text = _ENDLESS.sub(_endless, text)
    text = _TEN_TIMES.sub(r"\\times ", text)
    for pattern, name in ((_CHOOSE, "binom"), (_ARRANGE, "perm")):
        text = pattern.sub(partial(_chosen, name), text)
    return text


def _dotted(match: re.Match[str]) -> str:
    before, *period = match.groups()
    return rf"{before}\overline{{{''.join(digits or '' for digits in period)}}}"


def _endless(match: re.Match[str]) -> str:
    r"""Mark the period of ``0.1666\ldots``: the shortest that is written twice, a single digit three times."""
    whole, digits = match.groups()
    for length in range(1, len(digits) // 2 + 1):
        times = 3 if length == 1 else 2
        period = digits[-length:]
        if digits.endswith(period * times):
            rest = digits
            while rest.endswith(period):
                rest = rest[:-length]
            return rf"{whole}.{rest}\overline{{{period}}} "
    return match.group()


def _chosen(name: str, match: re.Match[str]) -> str:
    above, below = match[1] or match[2], match[3] or match[4]
    return rf"\{name}{{{above}}}{{{below}}}"
