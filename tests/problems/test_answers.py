"""Where completions state their answers."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spo_core.problems.answers import after_hashes, boxes, final_answer

PIECES = [*"{}#ab1 .\n\\", "\\boxed{", "\\fbox{", "answer is ", "####"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"a \boxed{1} b \boxed{\frac{1}{2}} c", ["1", r"\frac{1}{2}"]),
        (r"\boxed{\{1,2\}}", [r"\{1,2\}"]),  # escaped braces are text
        (r"\boxed 5", ["5"]),
        (r"\boxed{1", []),  # unclosed: nothing
        (r"\fbox{7}", ["7"]),
        (r"\boxed{x \boxed{y} z}", [r"x \boxed{y} z"]),
        (r"\boxed{3}\boxed{", ["3"]),
        (r"\boxed{ oh, wait: \boxed{4}", ["4"]),
        (r"\boxedness{4}", []),
    ],
)
def test_boxes(text, found):
    assert boxes(text) == found


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"The answer is 3. \boxed{4}", "4"),
        ("The answer is 5.", "5"),
        ("The final answer is: $\\frac12$. I hope it is correct.", "$\\frac12$"),
        ("The answer is 1.5 m. Done", "1.5 m"),
        ("the answer is: 5\nmore", "5"),
        ("**Answer:** 7", "7"),
        ("The answer is 5. Hence the answer is", "5"),
        ("The answer is 5, because 6 is not.", "5"),
        ("The answer is (1, 2).", "(1, 2)"),
        ("The answer is $\\boxed{}$", None),
        (r"<think>perhaps \boxed{3}</think>The answer is 4.", "4"),
        (r"<think>so it is \boxed{3}</think>Done.", "3"),
        ("The answer is $5$ and thus we are done", "$5$"),
        ("The answer is therefore 5.", "5"),
        ("The answer is not 5.", "not 5"),
        ("The answers are 5 and 6.", "5 and 6"),
        ("The answer is:\n- 5", "5"),
        ("The answer is: -5", "-5"),
        (r"\textbf{Answer: } 5", "5"),
        (r"\textbf{Answer: 5}", "5"),
        ("The answer is 72, in total, so we are done.", "72"),
        ("The answer is 72 (since 70+2=72).", "72"),
        ("The answer is 72 (70+2=72).", "72"),
        ("The answer is 72; that is all.", "72"),
        ("The answer is 72 -- that was easy", "72"),
        ("The answer is:\n\n$$72$$", "72"),
        ("The answer is:\n\\[\n\\frac12.\n\\]\nDone", "\\frac12"),
        ("The answer is:\n```\n72\n```", "72"),
        ("The correct option is (E).", "(E)"),
        ("The answer is 3, 4, and 5.", "3, 4, and 5"),
        ("The answer is $x=2, y=3$.", "$x=2, y=3$"),
        ("The answer is red, blue, and green.", "red, blue, and green"),
        ("The answer is f(2) exactly.", "f(2) exactly"),
        ("The answer is 72! Great.", "72"),
        ("The answer is 72!", "72"),
        ("The answer is $5!$", "$5!$"),
        ("The answer is 5! = 120", "5! = 120"),
        ("**Final Answer**\n72", "72"),
        ("### Final Answer\n72", "72"),
        ("<answer>72</answer>", "72"),
        ("The answer is 72, not 71.", "72"),
        ("The answer is 71 and not 72.", "71"),
        ("First 3, then 4", None),
        ("", None),
    ],
)
def test_final_answers(completion, answer):
    assert final_answer(completion) == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("#### 1\n#### 42 \nmore", "42"),
        ("#### 42. I hope it is correct", "42"),
        ("#### 42; that is all", "42"),
        ("#### 42 (since 40+2=42)", "42"),
        ("#### $70,000 profit", "$70,000 profit"),
        ("####", None),
        ("42", None),
    ],
)
def test_answers_after_hashes(completion, answer):
    assert after_hashes(completion) == answer


@given(TEXTS)
def test_every_box_is_balanced_and_stands_in_the_text(text):
    for box in boxes(text):
        assert box in text
    for answer in (final_answer(text), after_hashes(text)):
        assert answer is None or (answer and answer == answer.strip() and answer in text)


@given(TEXTS.filter(lambda text: "\\" not in text and text.count("{") == text.count("}") == 0))
def test_what_is_boxed_last_is_the_answer(text):
    expected = text.strip() or None
    assert (final_answer(rf"\boxed{{0}} so \boxed{{{text}}}") or "0") == (expected or "0")


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("{", 10**6),
        ("\\boxed", 160_000),
        ("\\boxed{", 140_000),
        ("####", 250_000),
        ("answer is ", 100_000),
        ("answer is. ", 90_000),
        ("I hope it is correct", 50_000),
        ("\0", 10**6),
        (" ", 10**6),
    ],
)
def test_a_megabyte_takes_no_time(text, times):
    started = time.monotonic()
    for begin in ("", "answer is", "answer is x", "answer is \\boxed{"):
        final_answer(begin + text * times)
        after_hashes(begin + text * times)
    assert time.monotonic() - started < 10
