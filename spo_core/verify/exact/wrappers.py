r"""Removes commands and environments around answers: ``\underbrace{5}_{...}``, ``\SI{5}{m}``, ``\begin{equation}``."""

from __future__ import annotations

import re

from spo_core.verify.exact.spellings import ENVIRONMENTS

OPENING = frozenset(["(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil"])
CLOSING = frozenset([")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil"])
_BRACKETS = re.compile(r"\\[a-zA-Z]+|\\.|[()\[\]{}]", re.DOTALL)


def closing(text: str, begin: int) -> int | None:
    """Where the brace or bracket that opens at ``begin`` closes; None where it does not."""
    depth = 0
    for match in _BRACKETS.finditer(text, begin):
        token = match.group()
        if token in OPENING:
            depth += 1
        elif token in CLOSING:
            depth -= 1
            if depth == 0:
                return match.start()
    return None


def without_wrapper(text: str) -> str:
    """Remove one command that has arguments and shows only one of them, or nothing."""
    match = _WRAPPER.search(text)
    while match:
        name = match[1]
        kinds = _WRAPPERS[name.rstrip("*")]
        arguments = []
        end = match.end()
        for _ in kinds:
            opened = re.compile(r"\s*(?:\[[^\[\]]*\]\s*)?[\^_]?\s*\{").match(text, end)
            closed = closing(text, opened.end() - 1) if opened else None
            if opened is None or closed is None:
                break
            arguments.append(text[opened.end() : closed])
            end = closed + 1
        if len(arguments) == len(kinds):
            shown = "".join(_shown(kind, argument) for kind, argument in zip(kinds, arguments, strict=True)) or " "
            apart = " " if shown[:1].isalpha() and text[: match.start()][-1:].isalpha() else ""
            return text[: match.start()] + apart + shown + text[end:]
        match = _WRAPPER.search(text, match.end())
    if "\\begin" in text:
        text = _PLAIN_ENVIRONMENT.sub(
            lambda match: match[2].replace("&", "") if _one_line(match[2]) else match[0], text
        )
    return text


_WRAPPERS = {
    "textcolor": "-+", "colorbox": "-+", "fcolorbox": "--+", "color": "-", "phantom": "-", "hphantom": "-",
    "vphantom": "-", "hspace": "-", "vspace": "-", "tag": "-", "label": "-", "underbrace": "+-", "overbrace": "+-",
    "SI": "+u", "qty": "+u", "num": "+", "si": "u", "unit": "u", "ang": "°", "textsuperscript": "^",
    "textsubscript": "_", "href": "-+", "mathchoice": "+---", "raisebox": "-+", "bbox": "+",
    "smash": "+", "makebox": "+", "overset": "-+", "norm": "|",
    "scalebox": "-+", "mathclap": "+", "boxed": "+", "fbox": "+", "framebox": "+", "underset": "-+", "abs": "|",
    "paren": "(", "textquote": "+",
}  # fmt: skip
r"""Command -> how each argument is shown: ``+`` as it is, ``-`` not, else as unit, degrees, raised, in brackets..."""
_WRAPPER = re.compile(rf"\\((?:{'|'.join(_WRAPPERS)})\*?)(?![a-zA-Z])")
_PLAIN_ENVIRONMENT = re.compile(rf"\\begin\{{((?:{ENVIRONMENTS})\*?)\}}(.*?)\\end\{{\1\}}", re.DOTALL)
_UNIT_MACRO = re.compile(r"\\([a-zA-Z]{3,})")


def _shown(kind: str, argument: str) -> str:
    if kind == "u":
        return rf"\text{{ {_UNIT_MACRO.sub(_unit_word, argument)}}}"
    return {
        "-": "", "+": argument, "°": rf"{argument}^\circ ", "^": f"^{{{argument}}}", "_": f"_{{{argument}}}",
        "|": f"|{argument}|", "(": f"({argument})",
    }[kind]  # fmt: skip


def _unit_word(match: re.Match[str]) -> str:
    prefix = match[1] in ("kilo", "milli", "centi", "micro", "nano", "mega", "giga", "deci", "hecto", "pico", "tera")
    return match[1] if prefix else match[1] + " "


def _one_line(inside: str) -> bool:
    return re.search(r"\\\\(?!\s*$)", inside) is None
