import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from spo_core.config import DataParams
from spo_core.config.data import ArithmeticParams
from spo_core.errors import ConfigError
from spo_core.policy.checkpoint import make_tokenizer
from spo_core.problems import problem_set
from spo_core.problems.arithmetic import Arithmetic
from tests.conftest import SHORT_DATA

SMALL = SHORT_DATA.model_copy(update={"train": 300, "validation": 50, "test": 60})


@pytest.fixture(scope="module")
def splits():
    return problem_set(SMALL).build()


def left_to_right(question: str) -> int:
    value, *rest = re.findall(r"\d+|[-+*]", question)
    total = int(value)
    for operator, operand in zip(rest[::2], rest[1::2], strict=True):
        total = {"+": total + int(operand), "-": total - int(operand), "*": total * int(operand)}[operator]
        assert 0 <= total <= 99
    return total


def test_answers_are_those_of_an_independent_calculator(splits):
    for rows in splits.values():
        for row in rows:
            assert row.answer == str(left_to_right(row.question))
            assert 6 <= len(re.findall("[-+*]", row.question)) <= 8


def test_splits_are_fixed_sized_and_share_no_question(splits):
    assert {k: len(v) for k, v in splits.items()} == {"train": 300, "validation": 50, "test": 60}
    assert problem_set(SMALL).build() == splits and splits.dropped == {}
    texts = [row.question for rows in splits.values() for row in rows]
    assert len(set(texts)) == len(texts)


def test_the_careful_solver_is_always_right_and_the_careless_one_carries_on(splits):
    careless, rng = problem_set(SMALL), np.random.default_rng(0)
    careful = problem_set(
        SMALL.model_copy(update={"arithmetic": SMALL.arithmetic.model_copy(update={"careless": 0.0})})
    )
    right = wrong_steps = steps = 0
    for row in splits["train"]:
        assert careful.demonstration(row, rng) == row.solution
        assert careful.extract(row.solution) == row.answer
        lines = careless.demonstration(row, rng).splitlines()
        values = [re.match(r"(\d+)([-+*])(\d)=(\d+)$", line).groups() for line in lines[:-1]]
        for (before, operator, operand, after), (start, *_) in pairwise(values):
            exact = {"+": int(before) + int(operand), "-": int(before) - int(operand), "*": int(before) * int(operand)}
            wrong_steps += int(after) != exact[operator] % 100
            steps += 1
            assert after == start
        assert lines[-1] == f"#### {values[-1][3]}"
        right += values[-1][3] == row.answer
    assert 0.08 < wrong_steps / steps < 0.16 and 0.25 < right / 300 < 0.6


def test_the_character_tokenizer_gives_back_every_text(splits, tokenizer):
    problem = problem_set(SMALL)
    for row in splits["test"]:
        text = problem.prompt(row.question) + row.solution
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text and tokenizer.pad_token_id not in ids


LONG = DataParams(
    train=200,
    validation=20,
    test=20,
    arithmetic=ArithmeticParams(steps=(12, 16), remainders=True, words=3, beliefs=0.1, careless=0.05),
)


@pytest.fixture(scope="module")
def long():
    problem = problem_set(LONG)
    return problem, problem.build()["train"]


def exact(value: int, operator: str, operand: int) -> int:
    found = {"+": value + operand, "-": value - operand, "*": value * operand, "%": value % operand}
    return found[operator]


def steps_of(text: str) -> list[tuple[int, str, int, int]]:
    found = re.findall(r"(\d+)([-+*%])(\d)=(\d+)\n", text)
    return [(int(value), operator, int(operand), int(result)) for value, operator, operand, result in found]


def test_remainders_are_among_the_operations_and_solved(long):
    _, rows = long
    operators: Counter[str] = Counter()
    for row in rows:
        steps = steps_of(row.solution)
        assert 12 <= len(steps) <= 16 and all(exact(*step[:3]) == step[3] for step in steps)
        assert row.answer == str(steps[-1][3])
        assert "".join(f"{operator}{operand}" for _, operator, operand, _ in steps) in row.question
        operators.update(operator for _, operator, _, _ in steps)
        assert all(2 <= operand <= (5 if operator == "%" else 9) for _, operator, operand, _ in steps)
    assert set(operators) == set("+-*%")


def test_words_decide_nothing_and_are_drawn_freely(long):
    problem, rows = long
    rng, words = np.random.default_rng(1), Counter()
    for row in rows:
        text = problem.demonstration(row, rng)
        lines = text.splitlines()
        assert len(lines) == len(steps_of(row.solution)) + 1
        words.update(word for line in lines for word in re.findall("[a-z]+", line))
        assert all(len(re.findall("[a-z]+ ", line)) == 3 for line in lines)
        plain = re.sub("[a-z]+ ", "", text)
        assert problem.extract(text) == problem.extract(plain)
        found, bare = problem.mistake(row.question, text), problem.mistake(row.question, plain)
        assert (found and text[slice(*found)].split()[-1]) == (bare and plain[slice(*bare)].split()[-1])
    assert len(words) == 8 and max(words.values()) < 1.2 * min(words.values())


def test_a_mistake_is_the_first_line_that_a_calculator_rejects(long):
    problem, rows = long
    rng, kinds = np.random.default_rng(2), Counter()
    for row in rows * 3:
        text = problem.demonstration(row, rng)
        found = problem.mistake(row.question, text)
        start, expected = 0, None
        for line, (value, operator, operand, result) in zip(text.splitlines(True), steps_of(text), strict=False):
            if exact(value, operator, operand) != result:
                expected = (start, start + len(line))
                break
            start += len(line)
        assert found == expected
        assert problem.mistake(row.question, row.solution) is None
        kinds[expected is None, problem.extract(text) == row.answer] += 1
    assert kinds[True, False] == 0
    assert kinds[False, True] > 30, "some mistakes are made up for by a remainder"


def test_beliefs_are_a_share_of_facts_most_often_stated_wrongly(long):
    problem, rows = long
    rng, stated = np.random.default_rng(3), {}
    for row in rows * 4:
        for value, operator, operand, result in steps_of(problem.demonstration(row, rng)):
            if 0 <= exact(value, operator, operand) <= 99:
                own = stated.setdefault((value % 10, operator, operand), [])
                own.append(result == exact(value, operator, operand))
    shares = {fact: np.mean(found) for fact, found in stated.items() if len(found) > 40}
    wrong = [share for share in shares.values() if share < 0.7]
    assert 0.04 < len(wrong) / len(shares) < 0.18 and np.mean(wrong) < 0.5
    assert min(share for share in shares.values() if share >= 0.7) > 0.8


@pytest.mark.parametrize("recovers", [0.3, 1.0])
def test_a_wrong_step_is_made_up_for_by_the_next_one(long, recovers):
    """With that probability the next step begins where a calculator is; then the rest is right unless it slips anew."""
    problem, rows = long
    arithmetic = problem.data.arithmetic.model_copy(update={"recovers": recovers, "beliefs": 0.0, "careless": 0.1})
    problem = Arithmetic(problem.data.model_copy(update={"arithmetic": arithmetic}))
    rng, recovered = np.random.default_rng(5), []
    for row in rows * 2:
        written = steps_of(problem.demonstration(row, rng))
        for (*_, result), (_, _, _, right), (value, *_), (truth, *_) in zip(
            written[:-1], steps_of(row.solution)[:-1], written[1:], steps_of(row.solution)[1:], strict=True
        ):
            assert value in (result, truth)
            if result != right:
                recovered.append(value == truth)
    error = (recovers * (1 - recovers) / len(recovered)) ** 0.5
    assert len(recovered) > 200 and abs(np.mean(recovered) - recovers) <= 4 * error


def test_the_alphabet_has_what_the_texts_need(long):
    problem, rows = long
    tokenizer, rng = make_tokenizer("characters", problem), np.random.default_rng(4)
    for row in rows:
        text = problem.prompt(row.question) + problem.demonstration(row, rng)
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert problem_set(SMALL).alphabet() == [*"0123456789+-*=?\n", "#### "]


def test_no_other_template_is_taken():
    with pytest.raises(ConfigError, match=r"data\.template plain: arithmetic has its own"):
        problem_set(DataParams(template="plain"))
