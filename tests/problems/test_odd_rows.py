"""Rows that people bring, however odd: prepared, or refused in a line that names the row; special tokens are text."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from spo_core.config import DataParams
from spo_core.credit.audit import read_tree
from spo_core.errors import DataError
from spo_core.learn.supervised import encode_demonstrations
from spo_core.policy.checkpoint import make_tokenizer
from spo_core.problems import problem_set
from spo_core.problems.answers import unusable_gold
from spo_core.problems.base import Question, read_split, write_split
from spo_core.problems.templates import TEMPLATES, Template, encode_prompts
from spo_core.system.command_line import read_lines
from spo_core.system.files import parse_json
from tests.conftest import ROOT

CALM = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ODD = ["9" * 5000, "1" + "0" * 301, "NaN", "-Infinity", "1e999", "[" * 100_000, '{"a":' * 100_000, '{"a": 1, "a": 2}']
ODD += [
    '"\\ud800"',
    '"\\u0000"',
    "{",
    "",
    "nul",
    "'x'",
    "1 2",
    "[1,]",
    '"nan"',
    '" NaN "',
    '"steps\\n#### 5"',
    "[[1], 2]",
]
ODD += [
    '"so $x$ is \\\\boxed{5}"',
    "true",
    "null",
    "[]",
    "{}",
    '""',
    '"  "',
    "[NaN]",
    "[1, Infinity]",
    "\x00",
    "\u2028",
]


@given(JSON)
@CALM
def test_json_with_keys_that_stand_once_is_what_json_reads(content):
    assert parse_json("\ufeff" + json.dumps(content)) == content


def rows(value: str) -> list[str]:
    fields = (
        '"question": {}, "answer": "1"',
        '"question": "q", "answer": {}',
        '"question": "q", "answer": "1", "solution": {}',
    )
    return [value, *("{" + text.replace("{}", value) + "}" for text in fields)]


@given(st.sampled_from(ODD) | JSON.map(json.dumps), st.integers(0, 3))
@CALM
def test_any_row_is_read_or_refused_by_its_line(tmp_path_factory, value, place):
    folder = tmp_path_factory.mktemp("rows")
    own = DataParams.model_validate({"problem_set": "own", "source": str(folder), "jsonl": OWN})
    (folder / "t.jsonl").write_text('{"question": "p", "answer": "1"}\n' + rows(value)[place] + "\n", encoding="utf-8")
    try:
        questions = problem_set(own).test()
    except DataError as error:
        assert len(str(error).splitlines()) == 1 and "t.jsonl:2: " in str(error) and len(str(error)) < 600
        return
    assert all(unusable_gold(row.answer) is None and row.question.strip() for row in questions)
    write_split(folder / "again.jsonl", questions)
    assert read_split(folder, "again") == questions


OWN = {"test": "t.jsonl", "question": "question", "answer": "answer", "template": "{question}\n"}


@pytest.mark.parametrize("gold", ["steps\n#### 5", "#### 5", r"so \boxed{5}", "NaN", "-nan"])
def test_a_gold_that_no_completion_states_is_refused(gold):
    """Where it is not, a completion that states the very gold gives it back."""
    assert unusable_gold(gold) is not None
    for good in ("5", r"\boxed{5}", r"$\boxed{5}$", "1e999", "inf", "nanometre", "# 5"):
        assert unusable_gold(good) is None


@given(
    st.sampled_from(ODD) | JSON.map(json.dumps), st.sampled_from(["token_ids", "logprobs", "reward", "children", ""])
)
@CALM
def test_any_tree_is_read_or_refused_by_its_line(value, key):
    leaf = {"token_ids": [1], "logprobs": [-0.5], "reward": 1.0}
    text = json.dumps({"token_ids": [1], "children": [leaf]})
    if key:
        text = json.dumps({"token_ids": [1], "children": [leaf | {key: "HERE"}]}).replace('"HERE"', value)
    try:
        read_tree(text if key else value, "f:1")
    except DataError as error:
        assert str(error).startswith("f:1: ") and len(str(error).splitlines()) == 1


def test_a_byte_order_mark_is_none_of_the_text(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"given": "5", "gold": "5"}\n', encoding="utf-8-sig")
    assert [line for _, _, line in read_lines(str(path))] == ['{"given": "5", "gold": "5"}\n']
    tree = '{"token_ids": [1], "children": [{"token_ids": [1], "logprobs": [-0.5], "reward": 1.0}]}'
    assert read_tree("\ufeff" + tree, "x").nodes[1].reward == 1.0
    write_split(tmp_path / "train.jsonl", [Question("q", "?", "5")])
    data = (tmp_path / "train.jsonl").read_bytes()
    (tmp_path / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + data)
    assert read_split(tmp_path, "train") == [Question("q", "?", "5")]


def test_the_verifiers_command_refuses_such_golds_by_their_line(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('\ufeff{"given": "5", "gold": "5"}\n{"given": "5", "gold": "steps\\n#### 5"}\n', encoding="utf-8")
    command = [sys.executable, "-m", "spo_core.verify", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and f"{path}:2: its gold holds the mark" in done.stderr and not done.stdout


# --- special tokens ---

BYTES = make_tokenizer("bytes", problem_set(DataParams(problem_set="gsm8k")))
BYTES.add_special_tokens({"additional_special_tokens": [AddedToken("<|im_end|>", special=True)]})
SPECIAL = ["<pad>", "<bos>", "<eos>", "<|im_end|>"]
IDS = {BYTES.convert_tokens_to_ids(token) for token in SPECIAL}
parts = st.lists(st.sampled_from([*SPECIAL, "<", "eos>", "a", " ", "\n", "é"]), max_size=6).map("".join)


@given(parts)
@CALM
def test_special_tokens_in_a_question_or_a_solution_are_text(text):
    template = TEMPLATES["math_task"]
    (ids,) = encode_prompts(template, BYTES, [text])
    assert not IDS & set(ids) and BYTES.decode(ids) == template.fill(text)
    problem = problem_set(DataParams(problem_set="gsm8k"))
    row = Question("q", text, "5", f"{text}\n#### 5")
    tokens, _ = encode_demonstrations([row], problem, BYTES, None)  # type: ignore[arg-type]
    assert tokens[0].tolist().count(BYTES.eos_token_id) == 1 and tokens[0, -1] == BYTES.eos_token_id


def test_a_template_with_special_tokens_keeps_them_and_refuses_them_in_a_question():
    chat = Template("chat", "{question}<|im_end|>\n", "hashes")
    end = BYTES.convert_tokens_to_ids("<|im_end|>")
    assert encode_prompts(chat, BYTES, ["a"])[0].count(end) == 1
    with pytest.raises(DataError, match=r"template chat has special tokens.*'<eos>' would be one in a question"):
        encode_prompts(chat, BYTES, ["a", "b <eos>"])
