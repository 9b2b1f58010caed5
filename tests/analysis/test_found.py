"""Credit found: blame beside the step that is wrong, on trees whose texts are written out."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_core.analysis.found import credit_found
from spo_core.credit import Credit
from spo_core.problems import problem_set
from spo_core.problems.base import Question, ShowsMistakes
from spo_core.tree import FinishReason, Node, RolloutTree
from tests.conftest import SHORT_DATA

PROBLEM = problem_set(SHORT_DATA.model_copy(update={"train": 40, "validation": 4, "test": 4}))
ROWS = {row.question_id: row for row in PROBLEM.build()["train"]}
OWN = Question("own", "7+5*3-9", "27")
RIGHT = ["7+5=12\n", "12*3=36\n", "36-9=27\n", "#### 27"]
SLIP = ["7+5=12\n", "12*3=35\n", "35-9=26\n", "#### 26"]


def texts(ids: np.ndarray) -> list[str]:
    return [chr(i) for i in ids]


def response(parts: list[str], outcome: str = "wrong", *, question: str = "own", trainable: bool = True) -> RolloutTree:
    """One response, a segment a part."""
    nodes = [Node.prompt([1])]
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        more = {"reward": float(outcome == "correct"), "outcome": outcome} if last else {}
        ids, finish = [ord(c) for c in part], FinishReason.STOP if last else FinishReason.SEGMENT
        nodes.append(Node.sampled(number, ids, [-0.5] * len(ids), finish, trainable=trainable, **more))
    return RolloutTree(question, tuple(nodes))


def credited(tree: RolloutTree, advantages: list[float], masked: str = "") -> tuple[RolloutTree, Credit]:
    """One advantage a segment; tokens of the characters ``masked`` are not trained."""
    lengths = tree.lengths
    own = [np.full(n, a, np.float32) for n, a in zip(lengths, [0.0, *advantages], strict=True)]
    masks = [np.array([chr(i) not in masked for i in node.token_ids], bool) for node in tree.nodes]
    masks[0][:] = False
    return tree, Credit(np.zeros(len(lengths)), tuple(own), tuple(masks))


def shares(found) -> list[float]:
    return [found.before.value, found.on.value, found.behind.value]


def test_blame_is_weighed_by_tokens():
    """Lines of 7, 8, 8 and 7 tokens: 1·7 before, 2·8 on and 1·8 + 0·7 behind; praise is no blame."""
    found = credit_found([credited(response(SLIP), [-1, -2, -1, 3])], PROBLEM, {"own": OWN}, texts)
    assert shares(found) == pytest.approx([7 / 31, 16 / 31, 8 / 31])
    assert found.tokens_on.value == pytest.approx(8 / 30) and (found.blamed, found.responses) == (1, 1)
    assert math.isnan(found.on.error), "one question has no error"


def test_masked_tokens_are_not_blamed():
    found = credit_found([credited(response(SLIP), [-1, -1, -1, -1], masked="=\n")], PROBLEM, {"own": OWN}, texts)
    assert shares(found) == pytest.approx([5 / 24, 6 / 24, 13 / 24])


def test_a_segment_over_the_boundary_is_divided_by_characters():
    whole = response(["".join(SLIP)])
    found = credit_found([credited(whole, [-0.25])], PROBLEM, {"own": OWN}, texts)
    assert shares(found) == pytest.approx([7 / 30, 8 / 30, 15 / 30])
    assert found.on.value == pytest.approx(found.tokens_on.value)


def test_a_token_of_several_characters_lies_where_it_ends():
    """The segment's two tokens are a line and a half, and the rest: the first ends inside the wrong line."""
    tree = response(["ab"])
    parts = ["7+5=12\n12*", "3=35\n35-9=26\n#### 26"]
    found = credit_found([credited(tree, [-1])], PROBLEM, {"own": OWN}, lambda ids: parts)
    assert shares(found) == pytest.approx([0, 0.5, 0.5])


@pytest.mark.parametrize(
    ("tree", "why"),
    [
        (response(RIGHT, "correct"), "it is right"),
        (response(SLIP, "truncated"), "it was cut off"),
        (response(SLIP, trainable=False), "it values a state"),
        (response(RIGHT), "no step is wrong, whatever was graded"),
    ],
)
def test_only_wrong_trained_responses_with_a_wrong_step_count(tree, why):
    found = credit_found([credited(tree, [-1] * 4)], PROBLEM, {"own": OWN}, texts)
    assert (found.blamed, found.responses) == (0, 0) and math.isnan(found.on.value), why


def test_a_wrong_response_without_blame_is_counted_and_has_no_shares():
    found = credit_found([credited(response(SLIP), [0, 1, 0, 0])], PROBLEM, {"own": OWN}, texts)
    assert (found.blamed, found.responses) == (0, 1) and math.isnan(found.on.value)


def test_means_are_over_questions_and_trees_of_one_question_are_one():
    row = next(iter(ROWS.values()))
    other = response(["0+0=0\n", "#### 5"], question=row.question_id)
    pairs = [
        credited(response(SLIP), [0, -1, 0, 0]),
        credited(response(SLIP), [0, 0, -1, 0]),
        credited(other, [-1, 0]),
    ]
    found = credit_found(pairs, PROBLEM, {"own": OWN, row.question_id: row}, texts)
    assert shares(found) == pytest.approx([0, (0.5 + 1) / 2, (0.5 + 0) / 2])
    assert found.on.error == pytest.approx(np.std([0.5, 1], ddof=1) / math.sqrt(2))
    assert (found.blamed, found.responses) == (3, 3)


def test_leaves_of_a_tree_share_what_their_segments_are_blamed_for():
    """Both answers below the slip: the shared lines count for each."""
    nodes = response(SLIP).nodes
    other = Node.sampled(3, [ord(c) for c in "#### 99"], [-0.5] * 7, FinishReason.STOP, reward=0.0, outcome="wrong")
    found = credit_found(
        [credited(RolloutTree("own", (*nodes, other)), [0, -1, 0, -1, 0])], PROBLEM, {"own": OWN}, texts
    )
    assert found.responses == found.blamed == 2
    assert shares(found) == pytest.approx([0, (8 / 15 + 1) / 2, 7 / 15 / 2])


careless = st.tuples(st.sampled_from(sorted(ROWS)), st.integers(0, 2**32 - 1))


def first_error(completion: str) -> int | None:
    """The first line whose own arithmetic is wrong, by Python's; careless solvers carry on from what they have."""
    for number, line in enumerate(completion.splitlines()):
        step = re.fullmatch(r"(\d+)([-+*])(\d+)=(\d+)", line)
        if step and eval(f"({step[1]}{step[2]}{step[3]}) % 100") != int(step[4]):
            return number
    return None


@given(careless)
@settings(max_examples=120, deadline=None)
def test_the_mistake_of_a_careless_solution_is_its_first_wrong_line(drawn):
    row = ROWS[drawn[0]]
    completion = PROBLEM.demonstration(row, np.random.default_rng(drawn[1]))
    found, number = PROBLEM.mistake(row.question, completion), first_error(completion)
    if number is None:
        assert found is None and completion == row.solution
    else:
        lines = completion.splitlines(True)
        start = sum(map(len, lines[:number]))
        assert found == (start, start + len(lines[number]))


@given(careless, st.lists(st.floats(-1, 1), min_size=10, max_size=10), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_shares_sum_to_one(drawn, advantages, cut):
    """However the response was divided into segments."""
    row = ROWS[drawn[0]]
    completion = PROBLEM.demonstration(row, np.random.default_rng(drawn[1]))
    bounds = sorted({0, len(completion), *np.random.default_rng(cut).integers(1, len(completion), cut).tolist()})
    parts = [completion[a:b] for a, b in pairwise(bounds)]
    tree = response(parts, question=row.question_id)
    found = credit_found([credited(tree, advantages[: len(parts)])], PROBLEM, ROWS, texts)
    assert found.responses == (completion != row.solution)
    if found.blamed:
        assert sum(shares(found)) == pytest.approx(1) and all(share >= 0 for share in shares(found))


def test_other_completions_have_a_mistake_where_they_leave_the_solution():
    assert isinstance(PROBLEM, ShowsMistakes)
    mistake, right = PROBLEM.mistake, "".join(RIGHT)
    assert mistake(OWN.question, right) is None and mistake(OWN.question, right[:20]) == (15, 20)
    assert mistake(OWN.question, right + "\n") is None and mistake(OWN.question, "") is None
    assert mistake(OWN.question, "nonsense") == (0, 8)
    assert mistake(OWN.question, right + "\n#### 28") == (31, 38), "a second answer"
