"""Grading of the game of 24; section 5.4 of the reference has what the published grader does otherwise."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_core.verify import game24
from spo_core.verify.outcome import Outcome


@pytest.mark.parametrize(
    ("answer", "puzzle"),
    [
        ("(4 + 8) * (6 - 4)", "4 4 6 8"),
        ("(4+8)*(6-4)=24", "[4, 4, 6, 8]"),
        ("(4+8)*(6-4) = 24 ", "8,6,4,4"),
        ("(4+8)×(6−4)", "4 4 6 8"),
        ("(4+8)·(6-4)", "4 4 6 8"),
        (r"\left(4+8\right)\cdot \left(6-4\right)", "4 4 6 8"),
        (r"\left[4+8\right]\,\times\,{(6-4)} = 24", "4 4 6 8"),
        ("8÷(3-8/3)", "3 3 8 8"),  # needs exact thirds
        (r"\frac{8}{3-\dfrac{8}{3}}", "3 3 8 8"),
        (r"8\div\left(3-\frac{8}{3}\right)", "3 3 8 8"),
        ("12 + 12 + 13 - 13", "12 12 13 13"),
        ("((((((((((1*2*3*4))))))))))", "1 2 3 4"),
    ],
)
def test_right(answer, puzzle):
    assert game24.compare(answer, puzzle) is Outcome.CORRECT


@pytest.mark.parametrize(
    "answer",
    [
        "4 + 4 + 6 + 8",  # another value
        "6 * 4",  # not all numbers
        "(4 + 8) * (6 - 4) + 4 - 4",  # a number too often
        "4 * 6 + 8 - 8",  # 8 twice, 4 once
        "3 * 8 + 4 - 4",  # a number that is not in the puzzle
        "48 - 24",  # digits put together
        "46 - 8 - 4",
        "(4 + 8) * (6 - 4) = 25",
        "(4 + 8) * (6 - 4) = 24 = 24",
        "(4 + 8) * (6 - 4) = ",
        "(4 + 8) / (4 - 4) * 6",  # division by zero
        "8 / (6 / (4 - 4))",
        "0",
    ],
)
def test_wrong(answer):
    assert game24.compare(answer, "4 4 6 8") is Outcome.WRONG


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "=24",
        "twelve times two",
        "(4+8)*(6-4",
        "(4+8]*(6-4)",
        "(4+8)(6-4)",  # no operator
        "4 4 6 8",
        "-4 + 4 + 6 * 8",  # the game has no sign
        "4 + -4",
        "4 ** 2 + 8",
        "48 // 2",
        "4^2 + 8",
        "4!",
        "4.0 * 6",
        r"\frac48",
        r"\frac{4}",
        r"\sqrt{4}",
        "４*6",  # no ASCII digit
        "__import__('os')",
        "(" * 50 + "4" + ")" * 50,
        "4+" * 200 + "4",
    ],
)
def test_unparsable(answer):
    assert game24.compare(answer, "4 4 6 8") is Outcome.UNPARSABLE


TREES = st.recursive(st.integers(1, 13), lambda parts: st.tuples(st.sampled_from("+-*/"), parts, parts), max_leaves=6)


def value_and_numbers(tree):
    if isinstance(tree, int):
        return Fraction(tree), [tree]
    operator, left, right = tree
    (a, first), (b, second) = value_and_numbers(left), value_and_numbers(right)
    numbers = first + second
    if a is None or b is None or (operator == "/" and b == 0):
        return None, numbers
    return {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[operator], numbers


SPELLINGS = {
    "+": ["+", " + "],
    "-": ["-", " − "],
    "*": ["*", "×", r"\times ", r" \cdot{}"],
    "/": ["/", " ÷ ", r"\div "],
}
BRACKETS = [("(", ")"), ("[", "]"), ("{", "}"), (r"\left(", r"\right)"), ("((", "))")]
STRENGTH = {"+": 1, "-": 1, "*": 2, "/": 2}


def written(draw, tree, strength=0):
    """A tree in one of its spellings, with brackets where they are needed and sometimes where they are not."""
    if isinstance(tree, int):
        return str(tree)
    operator, left, right = tree
    if operator == "/" and draw(st.booleans()):
        return rf"\frac{{{written(draw, left)}}}{{{written(draw, right)}}}"
    sign = draw(st.sampled_from(SPELLINGS[operator])).replace("{}", " ")
    own = STRENGTH[operator]
    text = written(draw, left, own) + sign + written(draw, right, own + 1)
    if own >= strength and draw(st.booleans()):
        return text
    opening, closing = draw(st.sampled_from(BRACKETS))
    return opening + text + closing


@settings(deadline=None)
@given(st.data(), TREES)
def test_every_spelling_of_an_expression_has_its_value_and_numbers(data, tree):
    text = written(data.draw, tree)
    value, numbers = value_and_numbers(tree)
    gold = " ".join(map(str, numbers))
    if len(text) > game24.LONGEST:
        return
    assert game24._read(text) == (value, numbers)
    assert game24.compare(text, gold) is (Outcome.CORRECT if value == 24 else Outcome.WRONG)
    assert game24.compare(text, gold + " 1") is Outcome.WRONG


@given(
    st.text() | st.lists(st.sampled_from([*"0123456789+-*/()[]{}= \\", r"\frac", r"\left("])).map("".join), st.text()
)
def test_no_text_raises(answer, gold):
    assert game24.compare(answer, gold) in (Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSABLE)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("piece", ["(", "{", "1", "1+", "9*", r"\frac{", " ", "\\"])
def test_long_texts_take_no_time(piece):
    for size in (game24.LONGEST // len(piece), 2**20):
        assert game24.compare(piece * size, "4 4 6 8") in (Outcome.WRONG, Outcome.UNPARSABLE)
