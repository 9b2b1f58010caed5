"""majority@n against a naive count, with the real rules."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_core.config import VerifyParams
from spo_core.evaluate.lighteval.details import Sample
from spo_core.evaluate.majority import majority
from spo_core.verify import Outcome
from spo_core.verify.verifier import Verifier

C, W = Outcome.CORRECT, Outcome.WRONG
SILENT = [o for o in Outcome if o not in (C, W)]


@pytest.fixture(scope="module")
def verifier():
    with Verifier(VerifyParams()) as verifier:
        yield verifier


class Counting:
    """Answers like a verifier, and remembers how often it was asked."""

    def __init__(self, verifier):
        self.verifier, self.calls, self.asked = verifier, 0, 0

    def compare(self, tasks):
        self.calls += 1
        self.asked += len(tasks)
        return self.verifier.compare(tasks)


def question(*votes, name="q"):
    return [Sample(name, i, "", "7", given, outcome, None, 1) for i, (given, outcome) in enumerate(votes)]


def naive(verifier, rule, samples):
    """Groups one after the other, one comparison at a time, and all of them."""
    voters = [s for s in samples if s.outcome in (C, W)]
    texts = [s.given for s in voters if s.outcome is W]
    groups = []
    for text in sorted(set(texts), key=lambda t: (-texts.count(t), t)):
        for group in groups:
            same = text == group[0] if rule == "game24" else verifier.compare([(rule, text, group[0])]) == [C]
            if same:
                group.append(text)
                break
        else:
            groups.append([text])
    sizes = [sum(texts.count(text) for text in group) for group in groups]
    right = len(voters) - len(texts)
    first = max([right, *sizes])
    return Fraction(1, 1 + sizes.count(right)) if right and first == right else Fraction(0)


ANSWERS = ["8", "8.0", "9", "18/2", "9.00", "10", "1/2", "0.5", "5.0"]
votes = st.one_of(
    st.tuples(st.sampled_from(["7", "7.0"]), st.just(C)),
    st.tuples(st.sampled_from(ANSWERS), st.just(W)),
    st.tuples(st.sampled_from(["8", "7", None]), st.sampled_from(SILENT)),
)
tables = st.lists(st.lists(votes, max_size=9), min_size=1, max_size=5)


@settings(deadline=None)
@given(table=tables, rule=st.sampled_from(["math", "text", "game24"]), seed=st.integers(0, 99))
def test_equals_the_naive_count_in_any_order(verifier, table, rule, seed):
    questions = [question(*row) for row in table]
    counting = Counting(verifier)
    found = majority(counting, rule, questions)
    expected = sum(naive(verifier, rule, row) for row in questions) / len(questions)
    assert found == pytest.approx(float(expected), abs=1e-15)
    assert counting.calls <= max(len({given for given, outcome in row if outcome is W}) for row in table)

    shuffled = random.Random(seed).sample([random.Random(seed).sample(row, len(row)) for row in questions], len(table))
    assert majority(verifier, rule, shuffled) == found


@pytest.mark.parametrize(
    ("votes", "score"),
    [
        ([("7", C)], 1),
        ([("8", W)], 0),
        ([], 0),
        ([("7", C), ("8", W)], 1 / 2),
        ([("7", C), ("8", W), ("9", W)], 1 / 3),
        ([("7", C), ("7.0", C), ("8", W), ("9", W)], 1),  # correct ones are one group, however written
        ([("7", C), ("7", C), ("1/2", W), ("0.5", W), (r"\frac{1}{2}", W)], 0),  # and wrong ones where they are equal
        ([("7", C), ("7", C), (r"\frac{1}{2}", W), ("0.5", W), ("8", W)], 1 / 2),
        ([("x+1", C), ("1+y", W), ("y+1", W)], 0),  # takes a worker
        ([("7", C), *[("8", Outcome.TRUNCATED)] * 2, *[(None, Outcome.NO_ANSWER)] * 2], 1),
        ([("7", C), *[("?", Outcome.UNPARSABLE)] * 2, *[("9^9^9", Outcome.TIMEOUT)] * 2], 1),
        ([("7", C), *[("8", Outcome.SEVERAL_ANSWERS)] * 2], 1),
        ([(None, Outcome.NO_ANSWER)] * 3, 0),
    ],
)
def test_by_hand(verifier, votes, score):
    assert majority(verifier, "math", [question(*votes)]) == pytest.approx(score, abs=1e-15)


def test_game_of_24_votes_by_text(verifier):
    """By its rule 12+12 would be right for 12+12, and 4*6 for 6*4: those are other expressions."""
    wrong = [("12+12", W), ("(12+12)", W)]
    assert majority(verifier, "game24", [question(("4*6", C), *wrong)]) == pytest.approx(1 / 3)
    assert majority(verifier, "game24", [question(("4*6", C), ("6*4", C), *wrong)]) == 1
    assert majority(verifier, "game24", [question(("4*6", C), wrong[0], wrong[0])]) == 0


def test_mean_over_questions_of_any_number_of_completions(verifier):
    rows = [question(("7", C), ("8", W)), question(("7", C)), question(("8", W), ("8", W)), question(("7", C))]
    assert majority(verifier, "math", rows) == pytest.approx(2.5 / 4)
    with pytest.raises(ValueError):
        majority(verifier, "math", [])


def test_one_call_a_round_for_all_questions_and_none_that_cannot_matter(verifier):
    counting = Counting(verifier)
    assert majority(counting, "math", [question(*[(str(n), W) for n in range(9)])] * 3) == 0  # nobody is correct
    assert majority(counting, "math", [question(*[("7", C)] * 5, *[(str(n), W) for n in range(4)])] * 3) == 1
    assert counting.calls == 0
    rows = [question(("7", C), ("8", W), ("8.0", W), ("9", W)), question(("7", C), ("9", W), ("10", W))] * 10
    assert majority(counting, "math", rows) == pytest.approx((0 + 1 / 3) / 2)
    assert counting.calls == 2
