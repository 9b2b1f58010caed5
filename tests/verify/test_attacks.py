"""Right answers with something added: what changes them is never credited, what says nothing always is.

The exhaustive test does so to gold answers of MATH-500 and GSM8K, spread over all of them.
"""

import json
import re
from collections import Counter

import pytest

from spo_core.verify.exact.number_words import CARDINALS, FRACTIONS, SPELT_MAGNITUDES
from spo_core.verify.outcome import Outcome
from spo_core.verify.pool import WorkerPool
from tests.conftest import SHARED_DATA

GOLDS = ["7", "12", "1234", "3.5", r"\frac{3}{4}", r"2\sqrt{3}", r"3\pi", "x^2+3x+7", r"\$36", r"90^\circ", "(3,4)"]

_WORDS_BEHIND = """
    factorial squared cubed halved doubled tripled wrong false impossible invalid undefined unknown rejected
    incorrect maybe perhaps probably not plus minus times over divided root roots squares cubes logs powers
    factorials inverse reciprocal opposite negative negatives below above less more fewer than modulo remainder
    base choose halves quarters hundreds tens ones dozens scores zillions squareds impossibles approximately
    exceeds missing lost short off extra gcd lcm sin cos log ln sqrt digits sums surds
"""
WORDS_BEHIND = [
    *_WORDS_BEHIND.split(),
    *sorted({*CARDINALS, *FRACTIONS, *SPELT_MAGNITUDES, "hundred", "dozen", "score"} - {"one"}),
]
WORDS_BEFORE = """
    not negative minus about nearly almost approximately twice half double triple square cube log sqrt hundred
    over under below above wrong never
"""
PHRASES_BEFORE = [
    "not x =", "less than", "more than", "at most", "at least", "up to", "half of", "one over", "square root of",
    "2x =", "-x =", r"\sqrt{x} =", "x^2 =", "1/x =", r"\log x =", "x >", r"x \ne", "1 or", "0,", "0.", "1/", "2^", "--",
]  # fmt: skip
BEHIND = ["!", "^2", "^{-1}", "*2", "/2", "+1", "-1", "e3", "_8", "_{2}", "i", r"\sqrt2", r"\cdot 10", r"\times 10^3",
          r"\%\%", ", 5", "; 6", "=6", r"\text{ not}", r"\text{ or }6", r" \pm 1", r"\overline{3}",
          "C2", "½", "′"]  # fmt: skip
AROUND = [r"\sqrt{%s}", r"\frac{1}{%s}", "(%s)^2", "-(%s)", r"\sin(%s)", r"\ln(%s)", "e^{%s}", "2^{%s}", "f(%s)",
          r"\hat{%s}", r"\cancel{%s}", "~~%s~~", "<s>%s</s>", "(%s, %s)", r"%s \ne %s", "%s + %s", "it is not %s",
          r"\text{not }%s", "%s is wrong", "anything but %s", "10 - %s", r"\lim %s", r"\phantom{%s}"]  # fmt: skip
SAYS_NOTHING = ["$%s$", r"\boxed{%s}", r"\displaystyle %s", "%s.", " %s ", "x = %s", r"\text{Area} = %s", "**%s**",
                r"\textcolor{red}{%s}", "The answer is %s", r"\underline{%s}", r"\therefore %s", "<b>%s</b>", "`%s`",
                r"\left(%s\right)", r"\begin{equation}%s\end{equation}", "{%s}", r"\bold{%s}"]  # fmt: skip
UNITS_BEHIND = ["cm", r"\text{ cm}^2", "miles per hour", r"\text{ m/s}", "dollars", "apples", "red apples", "people",
                r"\ \mathrm{kg}", "hours", "square feet", "cups of flour", "units"]  # fmt: skip


def attacks(gold):
    """Texts that do not say what ``gold`` says."""
    yield from (f"{gold} {word}" for word in WORDS_BEHIND)
    yield from (rf"{gold}\text{{ {word}}}" for word in WORDS_BEHIND)
    yield from (f"{words} {gold}" for words in (*WORDS_BEFORE.split(), *PHRASES_BEFORE))
    yield from (gold + behind for behind in BEHIND)
    yield from (around.replace("%s", gold) for around in AROUND)


def outcomes(pairs):
    pool = WorkerPool(2, 20.0)
    try:
        return pool.compare([("math", given, gold) for given, gold in pairs])
    finally:
        pool.close()


def credited(pairs):
    return [pair for pair, outcome in zip(pairs, outcomes(pairs), strict=True) if outcome is Outcome.CORRECT]


@pytest.mark.slow
def test_what_changes_an_answer_is_not_credited():
    assert credited([(text, gold) for gold in GOLDS for text in attacks(gold)]) == []


def test_what_says_nothing_changes_nothing():
    pairs = [(around.replace("%s", gold), gold) for gold in GOLDS for around in SAYS_NOTHING]
    pairs += [(f"{gold} {unit}", gold) for gold in GOLDS[:7] for unit in UNITS_BEHIND]
    right = credited(pairs)
    assert [pair for pair in pairs if pair not in right] == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("source", ["math500", "gsm8k"])
def test_every_gold_answer_withstands(source):
    folder = SHARED_DATA / source
    paths = [path for path in (folder / "train.jsonl", folder / "test.jsonl") if path.is_file()]
    if not paths:
        pytest.skip(f"{folder} is not here")
    rows = [json.loads(line)["answer"].rpartition("####")[2].strip() for path in paths for line in path.open()]
    # 10 - 5 is 5, 3C2 is 3, and 1! behind a sum is 1
    golds = [gold for gold in dict.fromkeys(rows) if not re.search(r"\\text\{\(|[=,]|^-?\d$|.[-+]|\\pm", gold)]
    golds = golds[:: max(1, len(golds) // 60)]
    found = credited([(text, gold) for gold in golds for text in attacks(gold)])
    print(source, len(golds), "golds:", Counter(text.replace(gold, "%s") for text, gold in found))
    assert found == []
