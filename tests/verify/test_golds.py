"""Every gold answer of GSM8K and MATH-500 equals itself as models write it, and not the answer of the next question."""

import json
import re
from functools import cache

import pytest
import sympy

from spo_core.problems.answers import final_answer
from spo_core.verify.exact.equality import same_value
from spo_core.verify.exact.expressions import read_expression
from spo_core.verify.exact.grader import compare, quick
from spo_core.verify.exact.literals import parse_number
from spo_core.verify.exact.notation import normalise
from spo_core.verify.outcome import Outcome
from tests.conftest import SHARED_DATA

SOURCES = ("gsm8k", "math500")

# Neighbours in MATH-500 that differ as texts and are the same answer.
EQUAL_NEIGHBOURS = {("5", "x=5")}


@cache
def golds(source: str) -> list[str]:
    folder = SHARED_DATA / source
    paths = [folder / f"{split}.jsonl" for split in ("train", "test") if (folder / f"{split}.jsonl").is_file()]
    if not paths:
        pytest.skip(f"{folder} is not here")
    rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return [row["answer"].rpartition("####")[2].strip() for row in rows]


def spellings(gold: str) -> dict[str, str | None]:
    """What a grader is handed when a completion states ``gold`` in one way or another."""
    unit = re.compile(r"\\(?:text|mbox)\{ [^{}]*\}(?:\^\d)?$|\\text\{ ?[a-z]+\}$|\^\\circ$|^\\\$")
    without_unit = unit.sub("", gold) if re.search(r"\d", gold) else gold
    written = {
        "boxed": final_answer(rf"So we are done. The answer is $\boxed{{{gold}}}$. It was easy."),
        "boxed twice": final_answer(rf"First \boxed{{0}}, no: \[\boxed{{ {gold} }}.\]"),
        "dollars": f"${gold}$",
        "sentence": final_answer(f"Adding up. The final answer is {gold}."),
        "sentence with dollars": final_answer(f"The answer is: ${gold}$. I hope it is correct."),
        "no units": without_unit,
        "dfrac": gold.replace(r"\frac", r"\dfrac").replace(r"\ddfrac", r"\dfrac"),
        "tight": re.sub(r"(?<![a-zA-Z\d]) +(?![a-zA-Z])", "", gold) if r"\ " not in gold else gold,
        "left and right": re.sub(r"(?<![\\a-z])([(\[])(.*)([)\]])$", r"\\left\1 \2 \\right\3", gold),
        "named": f"x = {gold}" if re.fullmatch(r"[-\d.,/{}\\frac]+", gold) else gold,
    }
    if re.fullmatch(r"-?\d+", gold):
        written |= {
            "thousands": f"{int(gold):,}",
            "LaTeX thousands": f"{int(gold):,}".replace(",", "{,}"),
            "decimal": gold + ".0",
            "money": rf"\${gold}" if not gold.startswith("-") else gold,
            "apples": f"{gold} apples",
        }
    return written


@pytest.mark.parametrize("source", SOURCES)
def test_golds_equal_themselves_as_models_write_them(source):
    wrong = []
    for gold in dict.fromkeys(golds(source)):
        for name, text in spellings(gold).items():
            if text is None or compare(text, gold) is not Outcome.CORRECT:
                wrong.append((name, text, gold))
    assert not wrong, f"{len(wrong)}: {wrong[:20]}"


@pytest.mark.parametrize("source", SOURCES)
def test_golds_do_not_equal_the_next_different_gold(source):
    wrong = []
    for gold, after in zip(golds(source), golds(source)[1:], strict=False):
        if gold.replace(",", "") == after.replace(",", "") or (gold, after) in EQUAL_NEIGHBOURS:
            continue
        if compare(after, gold) is Outcome.CORRECT or compare(f"${after}$", gold) is Outcome.CORRECT:
            wrong.append((after, gold))
    assert not wrong, wrong


def test_gsm8k_golds_are_all_decided_without_sympy():
    assert all(quick(gold, gold + ".0" if "." not in gold else gold) for gold in golds("gsm8k"))


def test_expressions_are_read_as_latex2sympy_reads_them():
    r"""Where that reads them: not ``\frac43``. Decimals it rounds, degrees it drops, letters it makes small."""
    from latex2sympy2_extended import latex2sympy

    compared = 0
    for gold in dict.fromkeys(golds("math500")):
        ours = read_expression(normalise(gold))
        if ours is None or gold.isdigit() or re.search(r"[A-Z.]|circ", gold):
            continue
        try:
            theirs = latex2sympy(gold)
        except Exception:
            continue
        assert same_value(ours, theirs.subs("i", sympy.I).doit()), gold
        compared += 1
    assert compared > 80


SAME_VALUE = {
    frozenset(pair)
    for pair in (
        (r"10,\!080", "10080"), ("120", r"120^\circ"), ("15", r"15\mbox{ cm}^2"), (r"180^\circ", r"\pi"),
        (r"2 \sqrt{5}", r"2\sqrt{5}"), ("30", r"30^\circ"), ("36", r"36^\circ"), ("36", r"\$36"), ("5", "x=5"),
        ("90", r"90^\circ"), (r"\frac14", r"\frac{1}{4}"),
    )
}  # fmt: skip


@pytest.mark.slow
def test_different_math500_golds_are_different_answers():
    """All pairs of differing texts, but for plain numbers paired with what has other digits; a few are one value."""
    different = list(dict.fromkeys(golds("math500")))
    digits = {gold: re.sub(r"\D", "", gold) for gold in different}
    plain = {gold for gold in different if parse_number(gold) is not None}
    equal = {
        frozenset((one, other))
        for index, one in enumerate(different)
        for other in different[index + 1 :]
        if (digits[one] in digits[other] or digits[other] in digits[one] or not {one, other} & plain)
        and compare(one, other) is Outcome.CORRECT
    }
    assert equal == SAME_VALUE
