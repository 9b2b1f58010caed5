r"""The published MATH grader for answers without a prefix, for comparison (docs/reference.md 4.2).

It is wrong in places, and kept so: anything within 0.001 is equal, 0.05 equals 5 (percent), ``[0,1)`` equals ``(0,1)``.
Of the 53 pairs of grader_pairs.json it gets 30 right. Where the reference is silent: an equation may have its sides
exchanged, 0.001 is an absolute tolerance in sympy's comparison too, and a digit before a fraction multiplies it. Only
LaTeX is parsed, not plain code such as ``sqrt(2)``, which sympy would evaluate.
"""

from __future__ import annotations

import math
import re
from collections import deque

from spo_core.problems.answers import boxes
from spo_core.verify.outcome import Outcome
from spo_core.verify.published.sympy_text import (
    LONGEST,
    brace_fractions,
    brace_roots,
    may_evaluate,
    same_by_sympy,
    slash_as_fraction,
)

TOLERANCE = 1e-3
DEEPEST = 8  # levels of answers within answers, as items of tuples in unions
_HOPE_BEGIN, _HOPE_END = "final answer is $", "$. I hope"
_OUTPUT = "```output"
_NUMBER = re.compile(r"-?\d*\.?\d+")
_MATRIX = re.compile(r"\\begin\{([pb])matrix\}(.*)\\end\{\1matrix\}")
_STEPS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\n", ""),
        (r"\.+$", ""),
        (r"\\!", ""),
        (r"^\\text\{([^{}]*)\}$", r"\1"),
        (r"\\[tdc]frac", r"\\frac"),
        (r"\\left|\\right", ""),
        (r"(?<=.)\\text\{[^{}]*\}$", ""),
        (r"\^\\circ|\^\{\\circ\}", ""),
        (r"\{(?:mm|cm|m)\}(?:\^[23])?", ""),
        (r"p\.m\.\s*$", ""),  # rarely matches: a full stop at the end is already removed
        (r"(\d)\s*t$", r"\1"),
        (r"\\?\$", ""),
        (r"x\s*\\in(?![a-z])", ""),
        (r"\\%", "%"),
        (r" \.", " 0."),
        (r"\\cdot", ""),  # deleted, not multiplied: 2\cdot3 is 23
        (r"(?:\\?infinity|\\?inf(?:ty)?)(?![a-z])", r"\\infty"),
        (r"\\mathbf|\\mathrm", ""),
        (r"\\mbox\{[^{}]*\}", ""),
        (r"j", "i"),
        (r"(\d)\.0+(?!\d)", r"\1"),
        (r"^\s*\.", "0."),
        (r"\\tan\s*([^\W_])", r"\\tan{\1}"),
    )
)


def extract(completion: str) -> str | None:
    r"""The answer in the first of these that there is: "final answer is $...$. I hope", the last box, the last "he
    answer is", the last block of output, the last number.

    Where a box is never closed, there is no answer.
    """
    begin = completion.find(_HOPE_BEGIN)
    end = completion.find(_HOPE_END, begin + len(_HOPE_BEGIN)) if begin >= 0 else -1
    if end >= 0:
        return completion[begin + len(_HOPE_BEGIN) : end].strip()
    if r"\boxed" in completion or r"\fbox" in completion:
        found = boxes(completion)
        return found[-1] if found else None
    _, sentence, rest = completion.rpartition("he answer is")
    if sentence:
        return rest.strip().split("\n", 1)[0].lstrip(": ").strip() or None
    _, block, rest = completion.rpartition(_OUTPUT)
    if block:
        return rest.split("```", 1)[0].strip() or None
    numbers = deque(_NUMBER.finditer(completion), maxlen=1)
    return numbers[0].group() if numbers else None


def compare(given: str, gold: str) -> Outcome:
    """CORRECT where answers are equal after the published normalisation by any of the published rules, or WRONG."""
    if given.strip() == gold.strip():
        return Outcome.CORRECT
    if max(len(given), len(gold)) > LONGEST:
        return Outcome.WRONG
    return Outcome.CORRECT if _equal(_stripped(given), _stripped(gold)) else Outcome.WRONG


def _stripped(text: str) -> str:
    """Apply the published normalisation, step by step in its order."""
    text = text.strip()
    for pattern, replacement in _STEPS:
        text = pattern.sub(replacement, text).strip()
    text = re.sub(r"\s+", "", brace_roots(text))
    return slash_as_fraction(brace_fractions(text)).rstrip("\\,.")


def _equal(given: str, gold: str, depth: int = 0) -> bool:
    if given == gold:
        return True
    if depth > DEEPEST:
        return False
    given_number, gold_number = _number(given), _number(gold)
    if given_number is not None and gold_number is not None:
        near = (gold_number / 100, gold_number, gold_number * 100)  # a percentage equals its fraction
        return any(math.isclose(given_number, value, abs_tol=TOLERANCE) for value in near)
    return (
        _same_items(_items(given), _items(gold), depth)
        or _same_matrices(given, gold, depth)
        or _same_equations(given, gold, depth)
        or _same_unions(given, gold, depth)
        or (may_evaluate(given) and may_evaluate(gold) and same_by_sympy(given, gold, TOLERANCE))
    )


def _number(text: str) -> float | None:
    text = text.replace(",", "")
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else None
    except ValueError:
        return None


def _items(text: str) -> list[str] | None:
    """Items of a tuple or interval, whatever its brackets; None for other text."""
    return text[1:-1].split(",") if len(text) > 2 and text[0] in "([" and text[-1] in ")]" else None


def _same_items(given: list[str] | None, gold: list[str] | None, depth: int) -> bool:
    return (
        given is not None
        and gold is not None
        and len(given) == len(gold)
        and all(_equal(*pair, depth + 1) for pair in zip(given, gold, strict=True))
    )


def _same_matrices(given: str, gold: str, depth: int) -> bool:
    rows = []
    for text in (given, gold):
        match = _MATRIX.fullmatch(text)
        if not match:
            return False
        rows.append([row.split("&") for row in match[2].split("\\\\") if row])
    return len(rows[0]) == len(rows[1]) and all(
        _same_items(row, other, depth) for row, other in zip(*rows, strict=True)
    )


def _same_equations(given: str, gold: str, depth: int) -> bool:
    """Compare two equations with all terms on one side; if only one side is an equation "x = ...", its right side
    counts."""
    sides, gold_sides = given.split("="), gold.split("=")
    if len(sides) == len(gold_sides) == 2:
        moved, gold_moved = (f"{left}-({right})" for left, right in (sides, gold_sides))
        return _equal(moved, gold_moved, depth + 1) or _equal(f"-({moved})", gold_moved, depth + 1)
    if len(sides) == 2 and len(gold_sides) == 1 and len(sides[0]) <= 2:
        return _equal(sides[1], gold, depth + 1)
    if len(gold_sides) == 2 and len(sides) == 1 and len(gold_sides[0]) <= 2:
        return _equal(given, gold_sides[1], depth + 1)
    return False


def _same_unions(given: str, gold: str, depth: int) -> bool:
    """Whether two unions have the same parts in any order."""
    parts, gold_parts = given.split(r"\cup"), gold.split(r"\cup")
    if len(parts) == 1 or len(gold_parts) == 1:
        return False
    return all(any(_equal(part, other, depth + 1) for other in gold_parts) for part in parts) and all(
        any(_equal(part, other, depth + 1) for part in parts) for other in gold_parts
    )
