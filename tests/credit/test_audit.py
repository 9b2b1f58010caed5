"""``python -m spo_core.credit``: numbers for one's own trees, and refusals that say where."""

import io
import json
import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_core.config import load_params
from spo_core.credit import segment_credit
from spo_core.credit.__main__ import command
from spo_core.credit.audit import DEEPEST, read_tree
from spo_core.errors import DataError
from spo_core.system.command_line import run
from tests.conftest import ROOT

CREDIT = load_params(ROOT).credit


@pytest.fixture
def audit(monkeypatch, capsys) -> Callable[..., subprocess.CompletedProcess]:
    """The command in this process: importing takes longer than what it does."""
    monkeypatch.chdir(ROOT)

    def call(*arguments: str, lines: str = "") -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["spo_core.credit", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
        with pytest.raises(SystemExit) as ended:
            run(command)
        return subprocess.CompletedProcess(arguments, ended.value.code, *capsys.readouterr())

    return call


def leaf(reward, ids=(3,)):
    return {"token_ids": list(ids), "logprobs": [-0.5] * len(ids), "reward": reward}


def inner(*children, ids=(4, 5)):
    return {"token_ids": list(ids), "logprobs": [-0.5] * len(ids), "children": list(children)}


def root(*children, **more):
    return {"token_ids": [1, 2], "children": list(children)} | more


def test_worked_example_of_a_tree():
    """Depth first: prompt 2/3; a leaf worth 1; a segment worth 1/3 with leaves 0, 1, 0."""
    tree = root(leaf(1), inner(leaf(0), leaf(1), leaf(0)), question_id="a")
    lines = json.dumps(tree) + "\n\n" + json.dumps(root(leaf(1.0))) + "\n"
    command = [sys.executable, "-m", "spo_core.credit", "-"]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert first == {
        "tree": 1,
        "question_id": "a",
        "values": [2 / 3, 1.0, 1 / 3, 0.0, 1.0, 0.0],
        "advantages": [0.0, 1 - 2 / 3, 1 / 3 - 2 / 3, 0 - 1 / 3, 1 - 1 / 3, 0 - 1 / 3],
    }
    assert second == {"tree": 3, "values": [1.0, 1.0], "advantages": [0.0, 0.0]}


def test_presets_and_overrides_choose_the_credit(audit, tmp_path):
    path = tmp_path / "trees.jsonl"
    path.write_text(json.dumps(root(leaf(1), leaf(0), leaf(1), leaf(1))))
    grpo = json.loads(audit(str(path), "--preset", "grpo").stdout)
    assert grpo["values"] == [None, 1, 0, 1, 1]
    rewards = np.array([1, 0, 1, 1])
    assert grpo["advantages"][1:] == pytest.approx((rewards - rewards.mean()) / (rewards.std() + 1e-8), abs=1e-15)
    rloo = audit(str(path), "--preset", "grpo", "--set", "credit.advantage.type=leave_one_out")
    assert json.loads(rloo.stdout)["advantages"] == pytest.approx([0, 1 / 3, -1, 1 / 3, 1 / 3])


def test_a_chain_with_its_value_rollouts(audit):
    """Fans worth 0.5 at the prompt and 0.25 behind the first segment; the last segment ends in its reward."""

    def fan(*rewards):
        return [leaf(r) | {"trainable": False} for r in rewards]

    tree = root(*fan(1, 0), inner(*fan(1, 0, 0, 0), leaf(1)))
    done = json.loads(audit("-", "--preset", "spo-chain", lines=json.dumps(tree)).stdout)
    assert done["values"] == [0.5, 1, 0, 0.25, 1, 0, 0, 0, 1]
    assert done["advantages"] == [0, 0, 0, -0.25, 0, 0, 0, 0, 0.75]


def test_grpo_on_a_nested_tree_is_refused_with_what_to_choose(audit):
    tree = root(leaf(1), inner(leaf(1), leaf(0)))
    refused = audit("-", "--preset", "grpo", lines="\n" + json.dumps(tree))
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("error: standard input:2: node 2 goes on below, and credit.value none compares")
    assert "choose credit.value tree_mean" in refused.stderr
    chosen = ("--set", "credit.value.type=tree_mean", "--set", "credit.partition={type: fixed_tokens, tokens: 2}")
    done = audit("-", "--preset", "grpo", *chosen, lines=json.dumps(tree))
    assert done.returncode == 0 and json.loads(done.stdout)["advantages"][1:3] == pytest.approx([1, -1])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "node 0: a node is an object"),
        (json.dumps(root(leaf(1), bogus=3)), "node 0: unknown key 'bogus'"),
        (json.dumps(root(leaf(1), leaf(1) | {"prob": 1})), "node 2: unknown key 'prob'"),
        (json.dumps(root(inner(leaf(1), {"token_ids": [3], "reward": 1}))), "node 3: logprobs is missing"),
        (json.dumps(root(leaf(1) | {"logprobs": []})), "node 1: 1 token_ids and 0 logprobs"),
        (json.dumps(root(leaf(None))), "node 1: a leaf needs a reward"),
        (json.dumps(root(leaf(True))), "node 1: reward must be a finite number, not true"),
        (json.dumps(root(leaf(math.nan))), "not valid JSON: NaN is no number"),
        (json.dumps(root(inner(leaf(1)) | {"reward": 1})), "node 1: only leaves carry a reward"),
        (json.dumps(root(inner(leaf(1)) | {"finish": "stop"})), "node 2: its parent had already ended"),
        (json.dumps(root(leaf(1) | {"finish": "prompt"})), "node 1: finish must be"),
        (json.dumps(root(leaf(1, ids=("a",)))), "node 1: token_ids must hold token ids"),
        (json.dumps(root(leaf(1) | {"logprobs": [0.5]})), "node 1: a log-prob is positive"),
        (json.dumps(root(leaf(1)) | {"token_ids": []}), "node 0: the prompt has no tokens"),
        (json.dumps(root(leaf(1)) | {"children": {"a": 1}}), "node 0: children must be a list"),
        (json.dumps(root(leaf(1) | {"trainable": 1})), "node 1: trainable must be true or false"),
    ],
)
def test_bad_lines_are_refused_by_name(line, message):
    with pytest.raises(DataError) as refusal:
        read_tree(line, "trees.jsonl:7")
    assert str(refusal.value).startswith("trees.jsonl:7: ") and message in str(refusal.value)


def test_a_refusal_is_one_line_and_status_2(audit, tmp_path):
    path = tmp_path / "trees.jsonl"
    path.write_bytes(json.dumps(root(leaf(1))).encode() + b"\n{}\n")
    refused = audit(str(path))
    assert refused.returncode == 2 and len(refused.stdout.splitlines()) == 1
    assert refused.stderr == f"error: {path}:2: node 0: token_ids is missing\n"
    path.write_bytes(b"\xff\n")
    assert audit(str(path)).stderr.startswith(f"error: {path}:1: not UTF-8")
    for arguments in ([str(tmp_path / "missing")], [str(path), "--preset", "nope"]):
        refused = audit(*arguments)
        assert refused.returncode == 2 and refused.stderr.startswith("error: ") and "Traceback" not in refused.stderr


@pytest.mark.parametrize("nodes", [DEEPEST, DEEPEST + 1, 100_000])
def test_a_chain_beyond_the_limit_is_refused(nodes):
    text = '{"token_ids": [1], "children": [' + '{"token_ids": [2], "logprobs": [-1], "children": [' * (nodes - 1)
    text += '{"token_ids": [2], "logprobs": [-1], "reward": 1}' + "]}" * nodes
    if nodes == DEEPEST:
        assert len(read_tree(text, "here").nodes) == nodes + 1
    else:
        with pytest.raises(DataError, match="here: more than 400 segments one behind the other; join some"):
            read_tree(text, "here")


def nested_trees():
    rewards = st.floats(-1, 1) | st.integers(0, 1)
    nodes = st.recursive(
        st.builds(leaf, rewards), lambda below: st.lists(below, min_size=1, max_size=4).map(lambda c: inner(*c))
    )
    return st.lists(nodes, min_size=1, max_size=4).map(lambda c: root(*c))


def naive(node, parent_value=None):
    """(value, advantage) of a node and all below it, depth first."""

    def value(n):
        return sum(map(value, n["children"])) / len(n["children"]) if n.get("children") else n["reward"]

    own = value(node)
    below = [pair for child in node.get("children", []) for pair in naive(child, own)]
    return [(own, 0.0 if parent_value is None else own - parent_value), *below]


@settings(max_examples=100, deadline=None)
@given(nested_trees())
def test_agrees_with_a_naive_recursion(nested):
    values, advantages = segment_credit(read_tree(json.dumps(nested), "here"), CREDIT)
    expected = np.array(naive(nested))
    assert values == pytest.approx(expected[:, 0], abs=1e-12)
    assert advantages == pytest.approx(expected[:, 1], abs=2e-9)
