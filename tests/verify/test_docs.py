"""The examples of docs/grading.md."""

import re

import pytest

from spo_core.verify.exact.grader import compare
from spo_core.verify.outcome import Outcome
from tests.conftest import ROOT

BLOCKS = re.findall(r"```pairs\n(.*?)```", (ROOT / "docs" / "grading.md").read_text(), re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]


def test_there_are_examples_of_both_sorts():
    assert sum(" == " in line for line in LINES) > 40 and sum(" != " in line for line in LINES) > 15


@pytest.mark.parametrize("line", LINES)
def test_an_example_is_judged_as_the_page_says(line):
    given, sign, gold = re.fullmatch(r"(.+) (==|!=) (.+)", line).groups()
    assert (compare(given, gold) is Outcome.CORRECT) is (sign == "==")
    assert (compare(gold, given) is Outcome.CORRECT) is (sign == "==")
