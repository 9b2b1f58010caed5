"""Rewrites Unicode, HTML and Markdown as plain LaTeX."""

from __future__ import annotations

import html
import re
import unicodedata

from spo_core.verify.exact.spellings import COMBINING, CURRENCIES, SCRIPTS, SUBSCRIPTS, SUPERSCRIPTS, SYMBOLS

_SUPERSCRIPT = re.compile(f"[{SUPERSCRIPTS}]+")
_SUBSCRIPT = re.compile(f"[{SUBSCRIPTS}]+")
_SYMBOL = re.compile("[" + "".join(map(re.escape, SYMBOLS)) + "]")
_VULGAR = re.compile(r"[¼-¾⅐-⅞↉]")
_COMBINED = re.compile(f"(.)([{''.join(COMBINING)}])")
_CURRENCY = re.compile(rf"([{CURRENCIES}]|\\(?:euro|pounds|yen)(?![a-z]))\s*([-−]?\d[\d.,' ]*\d|\d)")
_ENTITY = re.compile(r"&(?:[a-zA-Z]{2,12}\d{0,2}|#\d{1,6}|#x[0-9a-fA-F]{1,5});")
_MARK = re.compile(
    r"</?(?:b|i|u|em|strong|span|p|div|font|code|math|mark|center|answer|ans)(?: [^<>]*)?>", re.IGNORECASE
)
_BREAK = re.compile(r"<br ?/?>", re.IGNORECASE)
_RAISED = re.compile(r"<(sup|sub)>([^<>]*)</\1>", re.IGNORECASE)
_MARKDOWN = re.compile(r"(\*\*\*|\*\*|\*|__|`+)(?![\s*_`])(.*[^\s*_`])\1[.!]?", re.DOTALL)


def printable(text: str) -> str:
    """Remove control characters and marks of direction and variation; write digits of every script in ASCII."""
    if text.isascii() and text.isprintable():
        return text
    shown = []
    for char in text:
        category = unicodedata.category(char)
        if category in ("Cc", "Cs", "Zs", "Zl", "Zp"):
            shown.append(" ")
        elif category == "Nd":
            shown.append(str(unicodedata.decimal(char)))
        elif category != "Cf" and not "\ufe00" <= char <= "\ufe0f":
            shown.append(char)
    return "".join(shown)


def plain_characters(text: str) -> str:
    text = _CURRENCY.sub(r"\2\1", text)
    if text.isascii():
        return text
    text = _SUPERSCRIPT.sub(lambda match: "^{" + match.group().translate(SCRIPTS) + "}", text)
    text = _SUBSCRIPT.sub(lambda match: "_{" + match.group().translate(SCRIPTS) + "}", text)
    text = _VULGAR.sub(_vulgar, text)
    text = _COMBINED.sub(lambda match: COMBINING[match[2]] + "{" + match[1] + "}", text)
    text = re.sub(r"([√∛∜])\s*(\d+(?:\.\d+)?|[a-zA-Z])", _root, text)  # whole numbers, where \sqrt takes a digit
    text = _SYMBOL.sub(lambda match: SYMBOLS[match.group()], text)
    return unicodedata.normalize("NFKC", text)  # full-width digits, letters and signs


def _root(match: re.Match[str]) -> str:
    return f"{SYMBOLS[match[1]].strip()}{{{match[2]}}}"


def without_markup(text: str) -> str:
    """Remove HTML and Markdown around what is shown."""
    if "&" in text:
        text = _ENTITY.sub(lambda match: html.unescape(match.group()).replace("\xa0", " "), text)
    if "<" in text:
        text = _RAISED.sub(lambda match: ("^{" if match[1].lower() == "sup" else "_{") + match[2] + "}", text)
        text = _MARK.sub("", _BREAK.sub(" ", text))
    bare = text.strip()
    marked = _MARKDOWN.fullmatch(bare)
    return marked[2] if marked and marked[1] not in marked[2] else text


def _vulgar(match: re.Match[str]) -> str:
    above, _, below = unicodedata.normalize("NFKC", match.group()).partition("⁄")
    return rf"\frac{{{above}}}{{{below}}}"
