r"""One spelling for every notation: Unicode, LaTeX styles, spacing and braces.

``normalise`` changes how an answer is written and never what it says. Words stay apart from mathematics:
whatever stood in ``\text``, ``\mbox``, ``\mathrm``... stands in ``\text{...}`` afterwards, unless it was all there is.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from spo_core.verify.exact.characters import plain_characters, printable, without_markup
from spo_core.verify.exact.digits import plain_numbers
from spo_core.verify.exact.spellings import (
    CALLED,
    FONTS,
    FUNCTIONS,
    NOTHING,
    SPACES,
    SYNONYMS,
    TYPES,
)  # fmt: skip
from spo_core.verify.exact.wrappers import closing, without_wrapper

LONGEST = 2000
"""Characters; longer texts are no answers, and are not normalised."""

_ROUNDS = 60  # each removes one level of nested wrappers; deeper ones stay

_BARE_FUNCTION = re.compile(
    rf"(?<![a-zA-Z\\])(?:{'|'.join(sorted(FUNCTIONS, key=len, reverse=True))})(?![a-zA-Z])"
    r"(?!(?<=/sec)(?:\^\{?-?\d\}?)?$)"  # m/sec
    rf"|(?<![a-zA-Z\\])(?:{'|'.join(CALLED)})(?= ?\()"
)
_COMMAND = re.compile(r"\\(?:[a-zA-Z]+|.)", re.DOTALL)
_FONT_GROUP = re.compile(r"(\\[a-zA-Z]+)\s*\{([^{}]*)\}")
_NESTED_FONT = re.compile(r"(\\[a-zA-Z]+)\s*\{((?:[^{}]*\^\s*\{[^{}]*\})+[^{}]*)\}")
_TEXT_GROUP = re.compile(r"(\\text\{[^{}]*\})")
_TYPED_LETTER = re.compile(r"\\(?:vec|mathbf|boldsymbol|bm) ([a-zA-Z])(?![a-zA-Z])")
_UNIT_VECTOR = re.compile(
    r"\\(?:hat|mathbf|boldsymbol|bold|bm|pmb|vec|symbf)\s*"
    r"(?:\{\s*(?:\\mathbf\s*)?\{?\\?([ijk])(?:math)?\}?\s*\}|\\?([ijk])(?:math)?(?![a-zA-Z]))"
)
_OUTER = re.compile(r"(\\[a-zA-Z]+)\s*\{")
_INFIX = re.compile(r"\\(over|choose)(?![a-zA-Z])|\\.|[{}]", re.DOTALL)
_QUOTED = re.compile(r"(['\"`]+)([^'\"`]+)(['\"`]+)")
_PREFIX = (
    r"(?:(?:so|thus|hence|therefore),? )?(?:(?:the|my|our) )?(?:(?:final|correct) )?"
    r"(?:answer|ans|solution|result)(?: is:?|:) ?"
)
_PREFIXES = re.compile(rf"(?:\\text\{{{_PREFIX}\}} ?|{_PREFIX})(?!not\b|\\text\{{ ?not\b)(?=.)", re.IGNORECASE)
_EXCLAIMED = re.compile(rf"((?:{_PREFIXES.pattern})[^$]*[^$!])!$", re.IGNORECASE)
_ONLY = re.compile(r"(?<=[\w)\]}])(?:(?<!\w) ?only| only| ?\\text\{ ?only\})$")
_SO = "(?:[Ss]o|[Tt]hus|[Hh]ence|[Tt]herefore)"
_THEREFORE = re.compile(
    r"^(?:\\text\{ ?[Ee]ither ?\}|[Ee]ither (?=.* or )|\\(?:therefore|Rightarrow|to|rightarrow)(?![a-zA-Z])|=>|-->|->"
    rf"|{_SO}(?:, ?| (?!the ))|\\text\{{ ?{_SO},? ?\}}) ?"
)
_ARGUMENT = r"(?:\d|[a-zA-Z]|\\[a-zA-Z]+(?![a-zA-Z{]))"
_TIGHT = re.compile(r" ?([()\[\]+\-=<>|^_/:;&!*]|\\[{}]|(?<!\\)[{}]) ?")


def normalise(text: str) -> str:
    """Rewrite ``text`` in the one spelling; ``normalise(normalise(text)) == normalise(text)``."""
    text = " ".join(printable(text).split()) if len(text) <= LONGEST else text.strip()
    for _ in range(_ROUNDS):
        if len(text) > LONGEST:
            break
        before = text
        for step in _STEPS:
            text = step(text)
        if text == before:
            break
    return text


def _exclaimed(text: str) -> str:
    """Remove the exclamation mark of "The answer is 5!", which is no factorial."""
    return _EXCLAIMED.sub(r"\1", text)


def _dollars(text: str) -> str:
    r"""Remove ``$`` as a delimiter of mathematics; money keeps it, as ``\$``."""
    bare = [match.start() for match in re.finditer(r"(?<!\\)\$", text)]
    if not bare:
        return text
    return re.sub(r"(?<!\\)\$", "" if len(bare) % 2 == 0 else r"\\$", text)


def _commands(text: str) -> str:
    text = re.sub(r"\\(?:left|right)\s*\.", "", re.sub(r"(?<!~)~(?!~)", " ", text))  # ~~ strikes out
    return _COMMAND.sub(_command, text)


def _command(match: re.Match[str]) -> str:
    name = match.group()
    if name in NOTHING:
        # a space, or a letter behind would become part of the command before
        return " " if name[-1].isalpha() else ""
    if name in SPACES:
        return " "
    plain = SYNONYMS.get(name)
    if plain is None:
        return name
    return plain + " " if plain[-1].isalpha() else plain


def _unit_vectors(text: str) -> str:
    r"""Write the unit vectors i, j and k as ``\hat{i}``; they are such where two of them stand in the text."""
    found = {match[1] or match[2] for match in _UNIT_VECTOR.finditer(text)}
    if len(found) > 1:
        return _UNIT_VECTOR.sub(lambda match: rf"\hat{{{match[1] or match[2]}}}", text)
    letters = set(re.findall(r"[a-zA-Z]", re.sub(r"\\(?:sqrt|frac|cdot|hat)", "", text)))
    if "j" in letters and letters in ({"i", "j"}, {"i", "j", "k"}) and r"\hat" not in text and "(" not in text:
        return re.sub(r"(?<!\\)([ijk])(?![a-zA-Z])", r"\\hat{\1}", text)
    return text


def _fonts(text: str) -> str:
    r"""Unwrap boxes, write all fonts as ``\text``, and remove fonts around what is no word."""
    text = _TYPED_LETTER.sub(r" \1", _without_wrapper(text))
    text = _NESTED_FONT.sub(lambda match: f" {match[2]} " if match[1] in FONTS else match[0], text)
    text = _FONT_GROUP.sub(_font, text)
    whole = re.fullmatch(r"\\text\{([^{}]*)\}", text)
    return whole.group(1) if whole else text


def _without_wrapper(text: str) -> str:
    match = _OUTER.match(text)
    if match and match.group(1) in FONTS and closing(text, match.end() - 1) == len(text) - 1:
        return text[match.end() : -1]
    return text


def _infix(text: str) -> str:
    r"""Write ``{1 \over 2}`` and ``{5 \choose 2}`` as ``\frac`` and ``\binom``."""
    begins: list[int] = []
    for match in _INFIX.finditer(text):
        token = match.group()
        if token == "{":
            begins.append(match.start())
        elif token == "}":
            begins = begins[:-1]
        elif match.group(1):
            end = closing(text, begins[-1]) if begins else len(text)
            if end is None:
                return text
            begin = begins[-1] + 1 if begins else 0
            above, below = text[begin : match.start()].strip(), text[match.end() : end].strip()
            if not above or not below or re.search(r"\\(?:over|choose)(?![a-zA-Z])|[=<>&,]", above + below):
                continue
            fraction = rf"\{'frac' if match.group(1) == 'over' else 'binom'}{{{above}}}{{{below}}}"
            if begins and not re.search(r"[\^_a-zA-Z\]}] ?$", text[: begin - 1]):
                begin, end = begin - 1, end + 1  # braces that are not a command's argument go
            return text[:begin] + fraction + text[end:]
    return text


def _font(match: re.Match[str]) -> str:
    name, content = match.groups()
    if name not in FONTS:
        return match.group()
    bare = content.strip().removeprefix("\\")
    applied = re.match(r"\s*[\w(\[{|\\^]", match.string[match.end() :])  # 5 \text{ min} has no argument
    if (applied or content.startswith("\\")) and (bare in FUNCTIONS or bare in CALLED or bare in ("Re", "Im")):
        return rf"\{bare} "
    word = re.search(r"[a-zA-Z]", content)
    if not word or re.search(r"\\[a-zA-Z]", content):
        return content
    behind_number = re.search(r"\d ?$", match.string[: match.start()]) and not match.string[match.end() :].strip()
    choice = re.fullmatch(r"\s*\(?[A-Z]\)?[.:]?\s*", content) and not behind_number and name != r"\mathrm"
    constant = name in (r"\mathrm", r"\operatorname") and bare in ("e", "i")
    if not (choice or constant or (name in TYPES and len(bare) == 1)):
        return rf"\text{{{content}}}"
    # a space, or it would become part of the command before
    return (" " if match.string[: match.start()][-1:].isalpha() else "") + content


def _words_to_commands(text: str) -> str:
    r"""Write ``sqrt(2)``, ``pi``, ``infinity`` and ``x^(2)`` in LaTeX, and ``<=`` and ``*`` as signs."""
    text = re.sub(r"\s*<=\s*", r"\\leq ", text)
    text = re.sub(r"\s*>=\s*", r"\\geq ", text)
    text = re.sub(r"(?<= )per cent(?![a-zA-Z])", "percent", text)
    text = re.sub(r" (?:equals|is equal to) (?=[\d\\(\[+-])", "=", text)
    text = re.sub(r"(?<![\d)])\s*!=\s*", r"\\neq ", text)  # 5! = 120
    text = re.sub(r"(?<!\^)(?<!\^\{)\*", r"\\cdot ", text.replace("**", "^"))
    text = re.sub(r"(?<!\\)%", r"\\%", text)
    text = "".join(part if part.startswith(r"\text{") else _bare_functions(part) for part in _TEXT_GROUP.split(text))
    for marker in (r"\\sqrt ?(?=\()", r"\^ ?(?=\()"):
        match = re.search(marker, text)
        end = closing(text, match.end()) if match else None
        if match and end is not None:
            inner = text[match.end() + 1 : end]
            text = text[: match.end()].rstrip() + "{" + inner + "}" + text[end + 1 :]
    return text


def _bare_functions(text: str) -> str:
    """Put backslashes before the names of functions, except in prose."""
    prose = re.findall(r"(?<![a-zA-Z\\])([a-zA-Z]{3,}) (?=([a-zA-Z]{2,}))", text)
    if all(before in FUNCTIONS and after in FUNCTIONS for before, after in prose):
        text = re.sub(r"(?<![a-zA-Z])(\\?)log ?(2|10)(?= ?\()", r"\\log_{\2}", text)
        text = _BARE_FUNCTION.sub(_bare_function, text)
    return text


def _bare_function(match: re.Match[str]) -> str:
    return SYNONYMS.get(rf"\{match.group()}", rf"\{match.group()}") + " "


def _braces(text: str) -> str:
    r"""Put arguments in braces, as in ``\frac12``, ``\sqrt2``, ``x^2``, ``a_1``, but not the degree sign."""
    text = re.sub(r"\^ ?\{ ?\\circ ?\}|\^ ?\\circ(?![a-zA-Z])", r"^\\circ ", text)
    text = re.sub(rf"\\(frac|binom) ?({_ARGUMENT})", r"\\\1{\2}", text)
    text = re.sub(rf"\\(frac|binom) ?(\{{[^{{}}]*(?:\{{[^{{}}]*\}}[^{{}}]*)*\}}) ?({_ARGUMENT})", r"\\\1\2{\3}", text)
    text = re.sub(r"\\(hat|bar|overline|mathbb|d?dot|tilde) ?([a-zA-Z])(?![a-zA-Z])", r"\\\1{\2}", text)
    text = re.sub(rf"\\sqrt ?(\[[^\[\]]*\])? ?({_ARGUMENT})", r"\\sqrt\1{\2}", text)
    text = re.sub(r"\\log ?_ ?(\d+)", r"\\log_{\1}", text)
    text = re.sub(r"([\^_]) ?(-?\d+(?:\.\d+)?|[a-zA-Z]|\\(?!circ|text|frac|sqrt)[a-zA-Z]+)", r"\1{\2}", text)
    text = re.sub(r"(\^\{[^{}]*\})(_\{[^{}]*\})", r"\2\1", text)  # x^2_1
    return re.sub(r"([\^_]) ?(?:\{ ?\\text\{([^{}]*)\} ?\}|\\text\{([^{}]*)\})", r"\1{\2\3}", text)


def _spaces(text: str) -> str:
    """Remove spaces that do not separate words, numbers or commands."""
    text = " ".join(text.split())
    parts = re.split(r"(\\text\{[^{}]*\})", text)
    for index, part in enumerate(parts):
        if index % 2:
            parts[index] = re.sub(r"\{ | \}", lambda match: match.group().strip(), part)
        else:
            part = _TIGHT.sub(r"\1", part)
            part = re.sub(r" ,", ",", part)
            part = re.sub(r"(?<!\d), |, (?!\d)", ",", part)
            parts[index] = re.sub(r"(\\[a-zA-Z]+) (?![a-zA-Z])", r"\1", part)
    return "".join(parts)


def _ends(text: str) -> str:
    """Strip what surrounds the answer: "The answer is", quotes, the full stop, empty pairs at either end."""
    text = text.strip().removeprefix("{}").removesuffix("{}").strip()
    while prefix := _PREFIXES.match(text):
        text = text[prefix.end() :]
    text = _ONLY.sub("", _THEREFORE.sub("", text))
    quoted = _QUOTED.fullmatch(text)
    if quoted and (quoted.group(1) == quoted.group(3) or quoted.group(1, 3) == ("``", "''")):
        text = quoted.group(2).strip()
    text = re.sub(r"(^|=)<([^<>=,]*,[^<>=]*)>$", r"\1\\langle \2\\rangle", text)
    if re.search(r"(?<!\\)(?:\\\\)*\\$", text):
        text = text[:-1].rstrip()  # "\\ " that has lost its space
    while text.endswith(r"\\"):
        text = text[:-2].rstrip()
    while text.endswith((".", ",", ";", ":")) and not text.endswith("..") and not re.search(r"[ap]\.m\.$", text):
        text = text[:-1].rstrip()
    if text.startswith("{") and closing(text, 0) == len(text) - 1:
        text = text[1:-1]
    return text


def _all(step: Callable[[str], str]) -> Callable[[str], str]:
    """Repeat a step that removes one thing at a time until it changes nothing."""

    def repeated(text: str) -> str:
        while (shorter := step(text)) != text:
            text = shorter
        return text

    return repeated


_STEPS: tuple[Callable[[str], str], ...] = (
    without_markup, _exclaimed, plain_characters, plain_numbers, _all(without_wrapper), _unit_vectors, _commands,
    _dollars, _fonts, _all(_infix), _words_to_commands, _braces, _spaces, _ends,
)  # fmt: skip
