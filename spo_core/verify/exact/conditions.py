r"""Conditions behind an answer on its letters: ``k\in\mathbb{Z}``, "for all real x", "where C is a constant".

A letter that stands for any integer may have any name: see ``families``.
"""

from __future__ import annotations

import re

from spo_core.verify.exact.nodes import VARIABLE

_LETTERS = rf"{VARIABLE}(?:(?:,| and |, and ){VARIABLE})*"
_SET = (
    r"(?:\\in|in|is in|are in|belongs to) ?"
    r"(?P<set>\\mathbb\{[A-Z]\}(?:\^\{[+*]\}|_\{[^{}]*\})?|Z|the (?:integers|reals|real numbers))"
)
_KIND = (
    r"(?:positive |negative |non-?negative |nonzero |arbitrary |any )*"
    r"(?:integers?|reals?|whole|natural|complex|constants?|arbitrary|numbers?)"
)
_QUANTIFIER = r"(?:for (?:all|any|every|each)|\\forall|where|with|and|for|for some)"
_EVERY = r"(?:for (?:all|any|every|each)|\\forall)"
_FORM = re.compile(
    rf"(?:{_QUANTIFIER} ?)?(?P<a>{_LETTERS}) ?{_SET}"
    rf"|(?:{_EVERY} ?(?:(?P<kind1>{_KIND}) )?|(?:for|with|where) (?:some |an? )?(?P<kind3>{_KIND}) )"
    rf"(?:numbers? |values? |constants? )?(?:of )?(?P<b>{_LETTERS})"
    rf"|(?:{_QUANTIFIER} ?)?(?P<c>{_LETTERS})(?: (?:is|are|being|can be|may be))? "
    rf"(?:an? |any |some )*(?P<kind2>{_KIND})"
    r"(?: numbers?| constants?| values?)*"
    r"|for (?:all|any|every) reals?(?: numbers?| values?)?"
)


def without_condition(text: str) -> tuple[str, list[str], str] | None:
    r"""Split ``text`` into the answer, the letters of its condition and their set: Z, N, R or "" for any.

    None where there is no such condition.
    """
    if not re.search(r"\\in(?![a-z])|\\forall|\bfor |\bwhere |integer|constant|\breal|\bin Z", text) or len(text) > 400:
        return None
    flat = " ".join(re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).split())
    flat = re.sub(r" ?, ?", ",", re.sub(r" ?\\in ?(?![a-z])", r"\\in ", flat))
    for cut in re.finditer(r"[,;:]|(?= (?:for|where|with|and) )|(?=\\forall)| ?\((?=[^()]*\)$)", flat):
        main, condition = flat[: cut.start()].strip(), flat[cut.end() :].strip()
        if cut.group().endswith("("):
            condition = condition.removesuffix(")").strip()
        if not main:
            continue
        match = _FORM.fullmatch(condition)
        if match:
            letters = match["a"] or match["b"] or match["c"] or ""
            kind = match["set"] or match["kind1"] or match["kind2"] or match["kind3"] or ""
            return main, re.split(r",| and ", letters.replace(", and ", ",")) if letters else [], _which(kind)
    return None


def _which(kind: str) -> str:
    if re.search(r"\{Z\}(?:\^\{\+\}|_\{(?:>0|\+)\})|\{N\}|natural|positive integer", kind):
        return "N"
    if re.search(r"\{Z\}|^Z$|integer", kind):
        return "Z" if not re.search(r"negative|nonzero|[\^_]", kind) else "?"
    return (
        "R"
        if re.search(r"\{R\}$|^the real|^(?:any )?reals?$|constant|arbitrary|^numbers?$|complex|\{C\}", kind)
        or not kind
        else "?"
    )
