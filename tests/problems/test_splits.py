"""What all problem sets share: prepared files, and splits without a question in two of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_core.config import DataParams
from spo_core.errors import DataError
from spo_core.problems import problem_set
from spo_core.problems.base import Question, check_disjoint, normalized, read_split, write_split
from spo_core.problems.text_set import split_up

ROWS = [Question("a-0", "1+1", "2", "1+1=2"), Question("a-1", "2+2", "4")]


def test_prepared_files_round_trip_and_damage_is_named(tmp_path):
    write_split(tmp_path / "test.jsonl", ROWS)
    assert read_split(tmp_path, "test") == ROWS
    with pytest.raises(DataError, match=r"nothing/train\.jsonl: no such dataset.*flows\.prepare"):
        read_split(tmp_path / "nothing", "train")
    with pytest.raises(DataError, match="prepared without a train split, for evaluation only"):
        read_split(tmp_path, "train")
    (tmp_path / "train.jsonl").write_text('{"question": 1}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:1: not a prepared question"):
        read_split(tmp_path, "train")


def test_line_separators_inside_a_question_are_not_line_ends(tmp_path):
    rows = [Question("a", "one\u2028two\x85three", "1", "x\ny"), Question("b", "four", "2")]
    write_split(tmp_path / "test.jsonl", rows)
    assert read_split(tmp_path, "test") == rows


def test_a_shared_question_is_refused():
    with pytest.raises(DataError, match="also stands in train"):
        check_disjoint({"train": ROWS, "test": [Question("b", " 1 + 1 ", "2")]})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 1 + 1?", " what is\n1+1 "),
        (r"Find $\left( x,\! y \right)$.", "Find (x,y)"),
        (r"Compute \(\dfrac{1}{2}\)", r"Compute $\frac{1}{2}$."),
        ("Janet’s “eggs” – ½", 'Janet\'s "eggs" - 1⁄2'),
        (r"\big( x \Bigr) \quad y\;z", "(x)yz"),
        ("ﬁnd Ｘ", "find x"),
    ],
)
def test_rewritten_copies_are_the_same_question(one, other):
    assert normalized(one) == normalized(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1+1", "1-1"),
        ("What is 5!", "What is 5"),
        (r"x \leftarrow y", r"x \rightarrow y"),
        (r"\frac{1}{2}", r"\frac{2}{1}"),
        ("a < b", "a > b"),
        ("{1, 2}", "(1, 2)"),
        ("x^2", "x_2"),
        ("1.5", "15"),
        (r"\sin x", r"\cos x"),
        ("3 4/5", "34/5"),
        ("x²", "x2"),
    ],
)
def test_different_questions_stay_different(one, other):
    assert normalized(one) != normalized(other)


PIECES = st.sampled_from([*"ab12+-*/ =().,^$?é", r"\frac", r"\left(", r"\leq "])
TEXTS = st.lists(st.lists(PIECES, min_size=1, max_size=8).map("".join).filter(normalized), min_size=2, max_size=20)
REWRITES = st.sampled_from(
    (str.upper, lambda t: f"\n {t}\t ", lambda t: t.replace(" ", "  "), lambda t: f"${t}$", lambda t: f"\\left {t} .")
)


@settings(deadline=None, max_examples=100)
@given(TEXTS, TEXTS, st.data())
def test_no_rewritten_question_stands_in_two_splits_and_none_is_lost(train, test, data):
    planted = [data.draw(REWRITES)(data.draw(st.sampled_from(test))) for _ in range(3)]
    repeated = [data.draw(REWRITES)(data.draw(st.sampled_from(train))) for _ in range(3)]
    pool = [Question(f"train-{i}", text, "0") for i, text in enumerate([*train, *planted, *repeated])]
    held_out = {normalized(text) for text in test}
    kept = {normalized(row.question) for row in pool} - held_out
    if len(kept) < 2:
        return
    params = DataParams(validation=data.draw(st.integers(1, len(kept) - 1)), seed=data.draw(st.integers(0, 3)))
    splits = split_up(params, pool, [Question(f"test-{i}", text, "0") for i, text in enumerate(test)], 200)
    texts = {split: [normalized(row.question) for row in rows] for split, rows in splits.items()}
    assert len(texts["test"]) == len(test) and len(texts["validation"]) == params.validation
    assert sorted(texts["train"] + texts["validation"]) == sorted(kept)
    assert splits.dropped["dropped_test_questions"] == sum(normalized(row.question) in held_out for row in pool) >= 3
    assert len(pool) == len(kept) + sum(splits.dropped.values())


def test_what_is_left_out_is_logged(caplog):
    train = [Question(f"t{i}", text, "0") for i, text in enumerate(("one", "ONE ", "two", "three", "$four$"))]
    splits = split_up(DataParams(), train, [Question("e", "Four", "0")], 1)
    assert splits.dropped == {"dropped_test_questions": 1, "dropped_repeated_questions": 1}
    assert [r.getMessage() for r in caplog.records] == [
        "left out of train: 1 test questions",
        "left out of train: 1 repeated questions",
    ]


def test_all_test_questions_are_kept_out_of_train_even_where_few_are_evaluated():
    train = [Question(f"t{i}", str(i), "0") for i in range(10)]
    test = [Question(f"e{i}", str(i), "0") for i in range(5)]
    splits = split_up(DataParams(validation=1, train=3, test=2), train, test, 200)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 3, "validation": 1, "test": 2}
    assert splits.dropped == {
        "dropped_test_questions": 5,
        "dropped_repeated_questions": 0,
        "dropped_beyond_data_train": 1,
        "dropped_beyond_data_test": 3,
    }


def test_validation_that_leaves_nothing_to_train_on_is_refused():
    with pytest.raises(DataError, match=r"data\.validation 2 leaves none of 2 questions"):
        split_up(DataParams(), ROWS, [Question("e", "5", "5")], 2)


def test_half_a_character_is_refused_where_it_stands(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"problem": "1", "answer": "1"}\n{"problem": "\\ud800", "answer": "1"}\n')
    with pytest.raises(DataError, match=r"test\.jsonl:2: not a row of aime24"):
        problem_set(DataParams(problem_set="aime24", source=str(tmp_path))).build()
