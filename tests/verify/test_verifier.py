"""From completions to outcomes: extraction, the graders, what is remembered, when a run stops, the command line."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_core.config import DataParams, RewardParams, VerifyParams
from spo_core.errors import ConfigError, GradingError
from spo_core.problems import problem_set
from spo_core.verify import Outcome
from spo_core.verify.pool import WorkerPool
from spo_core.verify.rules import RULES, check_grader
from spo_core.verify.verifier import Verifier, check_failures, failed_share
from tests.conftest import ROOT
from tests.verify.test_pool import MISBEHAVING, TOWER

GSM8K, MATH, POINT24 = (problem_set(DataParams(problem_set=name)) for name in ("gsm8k", "math", "point24"))


@pytest.fixture(scope="module")
def verifier():
    with Verifier(VerifyParams()) as verifier:
        yield verifier


def outcome(verifier, problem, completion, answer):
    (verdict,) = verifier.grade(problem, [(completion, answer)])
    return verdict.outcome


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        ("so\n#### 42", "42", Outcome.CORRECT),
        ("#### 1,234", "1234", Outcome.CORRECT),
        ("#### $42.00", "42", Outcome.CORRECT),
        ("#### 42.", "42", Outcome.CORRECT),
        ("#### 41\n#### 42", "42", Outcome.CORRECT),
        ("#### 42\nmore text", "42", Outcome.CORRECT),
        ("#### 42. I hope it is correct", "42", Outcome.CORRECT),
        ("#### 43", "42", Outcome.WRONG),
        ("#### -42", "42", Outcome.WRONG),
        ("#### $42 profit", "42", Outcome.CORRECT),
        ("#### $42 per hour", "42", Outcome.CORRECT),
        ("#### 42 apples, in total", "42", Outcome.CORRECT),
        ("#### 42 thousandths", "42", Outcome.WRONG),
        ("#### many", "42", Outcome.UNPARSABLE),
        ("the answer is 42", "42", Outcome.NO_ANSWER),
        ("####", "42", Outcome.NO_ANSWER),
        ("", "42", Outcome.NO_ANSWER),
    ],
)
def test_answers_after_hashes(verifier, completion, answer, expected):
    assert outcome(verifier, GSM8K, completion, answer) is expected


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        (r"Hence $\boxed{\frac{1}{2}}$.", "0.5", Outcome.CORRECT),
        (r"First \boxed{3}, no: \boxed{4}", "4", Outcome.CORRECT),
        (r"First \boxed{4}, no: \boxed{3}", "4", Outcome.WRONG),
        (r"\fbox{4}", "4", Outcome.CORRECT),
        (r"\boxed{4", "4", Outcome.NO_ANSWER),
        (r"Therefore, the final answer is: $\boxed{x+1}$. I hope it is correct", "1+x", Outcome.CORRECT),
        ("The final answer is 7.", "7", Outcome.CORRECT),
        (r"So it is \boxed{(E) a thing}.", r"\text{(E)}", Outcome.CORRECT),
        ("I computed 3 and then 7", "7", Outcome.NO_ANSWER),  # no last number is taken for an answer
        (r"\boxed{}", "4", Outcome.NO_ANSWER),
    ],
)
def test_answers_in_boxes(verifier, completion, answer, expected):
    assert outcome(verifier, MATH, completion, answer) is expected


def test_the_game_of_24(verifier):
    assert outcome(verifier, POINT24, r"\boxed{(8-4)\times(10-4)}", "4 4 8 10") is Outcome.CORRECT
    assert outcome(verifier, POINT24, r"\boxed{6*4}", "4 4 8 10") is Outcome.WRONG


@pytest.mark.parametrize(
    ("grader", "problem", "completion", "answer", "expected"),
    [
        ("gsm8k_strict", GSM8K, "#### 42.0", "42", Outcome.WRONG),
        ("gsm8k_strict", GSM8K, "#### 1,234", "1234", Outcome.CORRECT),
        ("gsm8k_strict", GSM8K, "#### 42\nmore", "42", Outcome.WRONG),
        ("gsm8k_strict", GSM8K, "#### 41\n#### 42", "42", Outcome.SEVERAL_ANSWERS),
        ("minerva", MATH, "so 3, then 7", "7", Outcome.CORRECT),  # the last number
        ("minerva", MATH, r"\boxed{0.6667}", r"\frac{2}{3}", Outcome.CORRECT),
        ("exact", MATH, r"\boxed{0.6667}", r"\frac{2}{3}", Outcome.WRONG),
        ("prm800k", MATH, r"\boxed{\frac{2}{4}}", r"\frac{1}{2}", Outcome.WRONG),
        ("exact", MATH, r"\boxed{\frac{2}{4}}", r"\frac{1}{2}", Outcome.CORRECT),
    ],
)
def test_published_verdicts(grader, problem, completion, answer, expected):
    with Verifier(VerifyParams(grader=grader)) as verifier:
        assert outcome(verifier, problem, completion, answer) is expected


def test_a_stop_string_and_what_is_behind_it_say_nothing(verifier):
    own = problem_set(
        DataParams.model_validate(
            {"problem_set": "own", "jsonl": {"test": "unused", "template": "{question}", "stop": ("</answer>",)}}
        )
    )
    assert outcome(verifier, own, "#### 42 </answer> #### 41", "42") is Outcome.CORRECT
    with Verifier(VerifyParams(grader="gsm8k_strict")) as strict:
        assert outcome(strict, GSM8K, "x #### 42\n\n\nProblem:", "42") is Outcome.CORRECT


def test_a_rule_that_there_is_not_is_no_timeout(verifier):
    with pytest.raises(KeyError, match="gsm8k"):
        verifier.compare([("gsm8k", "1", "1")])


@pytest.mark.parametrize(
    ("grader", "problem"),
    [("minerva", POINT24), ("prm800k", POINT24), ("gsm8k_strict", MATH), ("gsm8k_strict", POINT24)],
)
def test_a_published_grader_that_finds_nothing_right_is_refused(grader, problem):
    with pytest.raises(ConfigError, match=r"verify\.grader"):
        check_grader(problem, grader)


def test_rewards_are_those_of_the_params():
    verifier = Verifier(
        VerifyParams(rewards=RewardParams(correct=2, wrong=-1, no_answer=-3, unparsable=-4, timeout=-5))
    )
    rewards = {o: verifier.rewards.of_outcome(o) for o in Outcome}
    assert rewards == {
        Outcome.CORRECT: 2,
        Outcome.WRONG: -1,
        Outcome.NO_ANSWER: -3,
        Outcome.UNPARSABLE: -4,
        Outcome.TIMEOUT: -5,
        Outcome.SEVERAL_ANSWERS: -2,
        Outcome.TRUNCATED: 0,
    }


def test_a_pair_is_compared_once_however_often_it_is_given(monkeypatch):
    monkeypatch.setitem(RULES, "tower", None)  # known to the workers
    verifier = Verifier(VerifyParams(seconds=0.5))
    verifier._pool = WorkerPool(2, 0.5, MISBEHAVING)
    asked = []
    compare = verifier._pool.compare
    verifier._pool.compare = lambda tasks: asked.append(list(tasks)) or compare(tasks)
    pair = ("math", "x+1", "1+x")
    with verifier:
        assert verifier.compare([TOWER, pair, TOWER, pair]) == [Outcome.TIMEOUT, Outcome.CORRECT] * 2
        assert verifier.compare([pair, TOWER]) == [Outcome.CORRECT, Outcome.TIMEOUT]
    assert asked == [[TOWER, pair], []]


def test_plain_numbers_need_no_worker(monkeypatch):
    def started(pool):
        raise AssertionError("a worker was started")

    monkeypatch.setattr(WorkerPool, "_start", started)
    verifier = Verifier(VerifyParams())
    assert verifier.compare([("math", "1,234", "1234"), ("math", "7", "8")]) == [Outcome.CORRECT, Outcome.WRONG]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.text(), st.sampled_from(["42", r"\frac{1}{2}", "(1,2)", "x^2"])), max_size=8))
def test_no_text_raises_and_every_completion_has_a_verdict(verifier, answers):
    for problem in (GSM8K, MATH, POINT24):
        boxed = [(rf"\boxed{{{text}}} #### {text}", gold) for text, gold in answers]
        assert len(verifier.grade(problem, [*answers, *boxed])) == 2 * len(answers)


def test_a_run_stops_where_too_many_answers_could_not_be_compared():
    outcomes = [Outcome.UNPARSABLE] * 3 + [Outcome.TIMEOUT] * 2 + [Outcome.WRONG] * 5 + [Outcome.TRUNCATED] * 90
    assert failed_share(outcomes) == 0.5 and failed_share([Outcome.TRUNCATED]) == 0
    check_failures(outcomes, 0.5, "iteration 7")
    with pytest.raises(GradingError, match=r"iteration 7: 50%.*unparsable \(3\).*timed out \(2\)"):
        check_failures(outcomes, 0.49, "iteration 7")


def command_line(*arguments, text=""):
    command = [sys.executable, "-m", "spo_core.verify", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_the_command_line_prints_an_outcome_a_line_in_order(tmp_path):
    rows = [
        {"given": "1/2", "gold": r"\frac{1}{2}"},
        {"completion": r"so \boxed{3}", "gold": "3"},
        {"given": "2", "gold": "3"},
        {"completion": "I do not know", "gold": "3"},
        {"given": 3, "gold": 3.0, "note": "numbers will do, and what else a line holds does not matter"},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    done = command_line(str(tmp_path / "pairs.jsonl"))
    assert done.returncode == 0, done.stderr
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["outcome"] for row in printed] == ["correct", "correct", "wrong", "no_answer", "correct"]
    assert [row["given"] for row in printed] == ["1/2", "3", "2", None, "3"]
    done = command_line("-", "--problem-set", "gsm8k", text='{"completion": "#### 3", "gold": "3"}\n')
    assert json.loads(done.stdout)["outcome"] == "correct", done.stderr


@pytest.mark.parametrize(
    ("arguments", "text", "words"),
    [
        (["-"], '{"given": "1", "gold": "1"}\n{"given": [1], "gold": "1"}\n', "standard input:2: not {"),
        (["-"], '{"given": "1"}\n', "standard input:1: not {"),
        (["-", "--grader", "minerva", "--problem-set", "point24"], "", "minerva compares mathematics, point24"),
        (["-"], "x\n", "standard input:1: not JSON"),
        (["nowhere.jsonl"], "", "nowhere.jsonl: No such file"),
        (["-", "--grader", "kind"], "", "exact, minerva"),
        (["-", "--problem-set", "gsm9k"], "", "arithmetic"),
    ],
)
def test_the_command_line_refuses_early_and_prints_no_outcome(arguments, text, words):
    done = command_line(*arguments, text=text)
    assert done.returncode == 2 and words in done.stderr and not done.stdout
    assert len(done.stderr.splitlines()) <= 2
