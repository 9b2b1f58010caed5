"""The exact grader on worked pairs, and on anything at all."""

import json
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from unittest.mock import Mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spo_core.verify.exact.grader import _read_and_compare, compare, quick
from spo_core.verify.exact.notation import normalise
from spo_core.verify.outcome import Outcome
from tests.conftest import ROOT, SHARED_DATA

REFERENCE = SHARED_DATA.parent / "reference" / "grader_pairs.json"
OURS = [json.loads(line) for line in (ROOT / "tests" / "verify" / "pairs.jsonl").read_text().splitlines()]
THEIRS = json.loads(REFERENCE.read_text()) if REFERENCE.is_file() else []

PIECES = r"""
    \frac \sqrt \left( \right) ( ) [ ] \{ \} { } ^ _ + - * / = < > \leq \cup \in \pm \text{ \mbox{ cm apples or and
    \begin{pmatrix} \end{pmatrix} & \\ 1 2 10 0.5 ,000 , ; . x y i e A \pi \infty \% $ \$ ^\circ ! | \sin \log_ \binom
    \boxed{ \overline{3} \mathbb{R} million no solution 7:30 p.m. not \! \, ~ \ ½ √ ² ∞ − € １ \cdot \times \emptyset
    f(x) \setminus \approx \mp \langle \rangle \lfloor \rfloor sqrt( pi base : a.m.
    \over \choose \textcolor{red}{ \color{ \phantom{ \Large \vec{ \mathbf{ ' " ` \equiv \pmod mod gcd( \text{Answer:
    Answer: 0,100 1,000 five alpha \overline{AB} \triangle ABC B aB ln > < to red oranges
"""
FRAGMENTS = [*PIECES.split(), " ", "\n", "\0", "\\"]
latex = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=14).map("".join)
spaced = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=10).map(" ".join)
texts = st.one_of(st.text(max_size=40), latex, spaced)


def is_correct(one: str, other: str) -> bool:
    return compare(one, other) is Outcome.CORRECT


def named(pairs):
    return [
        pytest.param(pair, id=f"{pair.get('kind', 'reference')}: {pair['given']} | {pair['gold']}") for pair in pairs
    ]


@pytest.mark.skipif(not THEIRS, reason=f"{REFERENCE} is not here")
def test_reference_pairs_are_all_judged_right_in_both_directions():
    for pair in THEIRS:
        assert is_correct(pair["given"], pair["gold"]) is pair["equal"], pair
        assert is_correct(pair["gold"], pair["given"]) is pair["equal"], pair


@pytest.mark.parametrize("pair", named(OURS))
def test_worked_pairs_are_judged_right_in_both_directions(pair):
    assert is_correct(pair["given"], pair["gold"]) is pair["equal"]
    assert is_correct(pair["gold"], pair["given"]) is pair["equal"]


def test_worked_pairs_are_many_and_of_both_sorts():
    verdicts = Counter(pair["equal"] for pair in OURS)
    assert verdicts[True] > 200 and verdicts[False] > 200
    assert len({(pair["given"], pair["gold"]) for pair in OURS}) == len(OURS)


@pytest.mark.parametrize(
    ("answer", "gold", "outcome"),
    [
        ("foo", "5", Outcome.UNPARSABLE),
        ("--5", "5", Outcome.UNPARSABLE),
        ("10,00", "1000", Outcome.UNPARSABLE),
        (r"\frac{1}{", "5", Outcome.UNPARSABLE),
        ("", "5", Outcome.UNPARSABLE),
        ("x" * 10_000, "5", Outcome.UNPARSABLE),
        ("6", "5", Outcome.WRONG),
        ("37452^{18374514}", "5", Outcome.WRONG),
        ("3y<2x", "3y>2x", Outcome.WRONG),
        ("no solution", "5", Outcome.WRONG),
        ("Angela", "Evelyn", Outcome.WRONG),
        ("5", "Evelyn", Outcome.WRONG),
        (r"\text{odd}", r"\text{even}", Outcome.WRONG),
    ],
)
def test_what_cannot_be_read_is_told_from_what_is_wrong(answer, gold, outcome):
    assert compare(answer, gold) is outcome


@pytest.mark.parametrize("error", [ImportError, NameError, MemoryError])
def test_a_mistake_of_ours_is_no_verdict(error, monkeypatch):
    monkeypatch.setattr("spo_core.verify.exact.structures.read_expression", Mock(side_effect=error))
    with pytest.raises(error):
        compare("2x", "x+y")


@pytest.mark.slow
def test_nothing_is_stumbled_over_in_worked_pairs():
    for one, other in pairwise(OURS):
        for text in (one["gold"], other["given"]):
            _read_and_compare(normalise(one["given"]), normalise(text))


def test_what_sympy_stumbles_over_is_not_called_wrong(monkeypatch):
    monkeypatch.setattr("spo_core.verify.exact.structures.read_expression", Mock(side_effect=TypeError))
    assert compare("2x", "x+y") is Outcome.UNPARSABLE


@pytest.mark.parametrize(
    ("answer", "gold", "outcome"),
    [
        ("42", "42", Outcome.CORRECT),
        ("1,234.50", "1234.5", Outcome.CORRECT),
        ("$42", "42.", Outcome.CORRECT),
        ("41", "42", Outcome.WRONG),
        (r"\frac12", "0.5", None),
        ("10,00", "1000", None),
        ("five", "5", None),
        ("", "", None),
    ],
)
def test_plain_numbers_are_decided_at_once(answer, gold, outcome):
    assert quick(answer, gold) is outcome


def test_plain_numbers_need_no_mathematics_library():
    program = (
        "import sys; from spo_core.verify.exact.grader import compare; "
        "assert compare('1,234.50', '1234.5') == 'correct' and compare('7', '8') == 'wrong'; "
        "assert not {'sympy', 'math_verify'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=ROOT)


@given(texts)
@settings(max_examples=300, deadline=None)
def test_every_text_equals_itself(text):
    assert not text or is_correct(text, text)


@pytest.mark.slow
@given(texts)
@example("½½")
@example(r"\text{\text{a}}")
@example("{" * 500)
@settings(max_examples=1000, deadline=None)
def test_normalising_twice_is_normalising_once(text):
    once = normalise(text)
    assert normalise(once) == once


@pytest.mark.slow
@given(texts, texts)
@settings(max_examples=500, deadline=None)
def test_nothing_raises_hangs_or_depends_on_the_order(one, other):
    compare("5", "1/2")  # so that sympy is there
    begin = time.monotonic()
    forth, back = is_correct(one, other), is_correct(other, one)
    assert time.monotonic() - begin < 20  # for two, on a busy machine
    assert forth is back


@given(st.fractions(max_denominator=1000), st.fractions(max_denominator=1000))
@settings(max_examples=100, deadline=None)
def test_fractions_are_equal_exactly_when_their_values_are(one, other):
    for left in (f"{one}", rf"\frac{{{one.numerator}}}{{{one.denominator}}}", f"x = {one}"):
        for right, value in ((f"{other}", other), (rf"\dfrac{{{one.numerator}}}{{{one.denominator}}}", one)):
            assert is_correct(left, right) is (one == value)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
@settings(max_examples=100, deadline=None)
def test_a_decimal_equals_itself_in_every_spelling_and_not_its_neighbour(value):
    for text in (f"{value:,}", f"${value}$", rf"{value} \text{{ cm}}", rf"\boxed{{{value}}}", f"x={value}"):
        assert is_correct(text, str(value))
        assert not is_correct(text, str(value + 1))
        assert not is_correct(text, f"{value}1")


@pytest.mark.parametrize(
    "text",
    [
        "1" * 1_000_000,
        "x" * 1_000_000,
        "{" * 1_000_000,
        r"\frac{" * 100_000,
        "\0" * 1_000_000,
        "a b " * 250_000,
        "-" * 1_000_000,
        "(" * 1000 + "5" + ")" * 1000,
        "{" * 900 + "5" + "}" * 900,
        "|" * 1000,
        r"\sqrt{" * 250 + "5" + "}" * 250,
        "2^{" * 300 + "2" + "}" * 300,
        r"\frac{1}{1+" * 100 + "x" + "}" * 100,
        "1," * 999,
        "a b c d e f g h " * 100,
        "5 " + "a" * 1000,
        "x=" * 900,
        r"\pm " * 300 + "1",
        "1" + r"\pm 1" * 200,
        r"\{" * 300 + "1" + r"\}" * 300,
        "1 or " * 300 + "2",
        "x<" * 300 + "2",
        "9^9^9^9^9",
        "9^{9^{9^{9}}}",
        "99999!!!",
        "(10^{4000})!",
        r"\binom{10^9}{5\cdot 10^8}",
        "37452^18374514",
        r"(1+10^{-9})^{10^9}",
        r"\sqrt{10^{60000}+1}",
        "1e999",
    ],
    ids=lambda text: text[:20].replace("\0", "null"),
)
def test_pathological_text_is_over_soon(text):
    compare("5", "1/2")
    begin = time.monotonic()
    assert not is_correct(text, "5.5 cm") and not is_correct("5.5 cm", text) and is_correct(text, text)
    compare(text, r"\frac{x}{2}")
    assert time.monotonic() - begin < 40  # four comparisons, on a busy machine
