"""Trees as deep as a response has segments: nothing recurses over one, or takes time with the square of its depth."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from spo_core.config import CreditParams, LearnParams, RolloutParams, ScratchPolicy
from spo_core.credit import assign_credit
from spo_core.credit.pairs import read_pairs
from spo_core.credit.value import tree_mean
from spo_core.learn.backend import TorchBackend
from spo_core.learn.replay import ReplayBuffer
from spo_core.learn.trainer import Trainer
from spo_core.observe.report import write_report
from spo_core.observe.tree_table import tree_rows
from spo_core.observe.tree_view import tree_view
from spo_core.policy.checkpoint import make_policy
from spo_core.rollout.engine import Completion
from spo_core.rollout.sampler import Prompt, Sampler
from spo_core.train.recorded import _check_trees
from spo_core.train.steps import rollout_metrics
from spo_core.tree import FinishReason, Node, RolloutTree, read_trees, write_trees
from tests.observe.examples import decode, inputs

pytestmark = pytest.mark.slow

SEGMENTS = 5000
LONGEST = 30.0  # seconds of CPU of any step; with the square of the depth each would take more
CUTS = {"type": "cutpoints", "interval": 1}
ADAPTIVE = {"type": "adaptive_monte_carlo", "min_rollouts": 1, "max_rollouts": 2}
VALUES = ({"type": "tree_mean"}, {"type": "monte_carlo", "rollouts": 1}, ADAPTIVE)
ADVANTAGES = ("difference", "leave_one_out", "group_normalized", "best_of_k_progress")


@contextmanager
def soon(step: str):
    started = time.process_time()
    yield
    assert time.process_time() - started < LONGEST, step


def credit(value=VALUES[1], advantage="difference", partition=CUTS) -> CreditParams:
    options = {"partition": partition, "value": value, "advantage": {"type": advantage}, "mask": {"type": "all"}}
    return CreditParams.model_validate(options)


def spine(beside: str) -> RolloutTree:
    """One response in 5,000 segments; off each hangs a value rollout, or another response, or nothing."""
    rng = np.random.default_rng(0)
    nodes, parent = [Node.prompt([97, 98])], 0
    for depth in range(SEGMENTS):
        last = depth + 1 == SEGMENTS
        end = {"reward": 1.0, "outcome": "correct"} if last else {}
        nodes.append(
            Node.sampled(parent, [100 + depth % 7], [-1.0], FinishReason.STOP if last else FinishReason.SEGMENT, **end)
        )
        if beside and depth:
            reward = float(rng.integers(2))
            more = {"reward": reward, "outcome": "wrong", "trainable": beside == "responses"}
            nodes.append(Node.sampled(parent, [110 + depth % 3, 99], [-1.0, -0.7], FinishReason.STOP, **more))
        parent = len(nodes) - 1 - bool(beside and depth)
    return RolloutTree("deep", tuple(nodes), iteration=1)


@pytest.mark.parametrize("beside", ["", "rollouts", "responses"])
def test_metrics_files_and_every_credit(tmp_path, beside):
    tree = spine(beside)
    with soon("metrics"):
        metrics = rollout_metrics([tree])
    ends = [i for i in tree.leaves if tree.nodes[i].trainable]
    assert metrics["rollout/completion_tokens"] == pytest.approx(np.mean([tree.completion_lengths[i] for i in ends]))
    assert metrics["rollout/reward"] == (1.0 if beside != "responses" else pytest.approx(tree_mean(tree)[0]))
    with soon("files"):
        write_trees(tmp_path / "trees.parquet", [tree])
        (back,) = read_trees(tmp_path / "trees.parquet")
        assert _check_trees(tmp_path / "trees.parquet", 1, 1000) == tree.generated_tokens
    assert [n.parent for n in back.nodes] == [n.parent for n in tree.nodes]
    for value in VALUES if beside == "rollouts" else VALUES[:1]:
        for advantage in ADVANTAGES:
            with soon(f"{value['type']}, {advantage}"):
                found = assign_credit(tree, credit(value, advantage))
            assert np.isfinite(found.values[1:]).all()


@pytest.mark.parametrize("beside", ["rollouts", "responses"])
def test_replay_planning_and_update(tmp_path, tokenizer, beside):
    """The update's loss is that of the same response as one segment."""
    tree = spine(beside)
    shape = {"tokenizer": "characters", "hidden_size": 8, "layers": 1, "heads": 1, "intermediate_size": 8}
    init = ScratchPolicy(type="scratch", max_positions=SEGMENTS + 8, **shape)
    model = make_policy(init, tokenizer, seed=0)
    small = [Node(n.parent, n.token_ids % 10 + 3, n.logprobs, n.finish, n.trainable, n.reward) for n in tree.nodes]
    tree = RolloutTree("deep", tuple(small), iteration=1)
    learn = LearnParams.model_validate(
        {"learning_rate": 1e-3, "optimizer_steps": 1, "max_logprob_gap": 1e9, "max_tokens_per_forward": 100_000}
        | {"replay": {"max_age": 3, "segments": 300 if beside == "responses" else None}}
    )
    replay = ReplayBuffer(learn)
    with soon("replay"):
        replay.add([tree], [assign_credit(tree, credit(VALUES[0] if beside == "responses" else VALUES[1]))])
        pairs, counts = replay.draw(1, np.random.default_rng(0))
        replay.save(tmp_path)
        assert len(read_pairs(tmp_path)) == len(replay.entries)
    assert counts["drawn"] > 200
    trainer = Trainer(TorchBackend(model, None, learn), learn, temperature=1.0, seed=0)
    with soon("update"):
        result = trainer.train_iteration(pairs, iteration=1)
    assert result["trained_tokens"] >= counts["drawn"] and result["optimizer_steps"] == 1


@pytest.mark.parametrize("beside", ["rollouts", "responses"])
def test_report_and_tables(tmp_path, beside):
    tree = spine(beside)
    found = assign_credit(tree, credit(VALUES[1] if beside == "rollouts" else VALUES[0]))
    with soon("report"):
        view = tree_view(tree, found, "a question", decode)
        assert sum(row.branch is not None for row in view.rows()) == len(view.root.branches) or beside == "responses"
        page = write_report(replace(inputs(), trees=[(tree, found, "a question")]), tmp_path, decode).read_text()
    assert page.count("data-node=") >= SEGMENTS and page.count("<details") == page.count("</details>")
    with soon("table"):
        assert len(tree_rows([(tree, found)], {"deep": "a question"}, decode)) == len(tree.nodes) - 1


class Instant:
    """An engine that samples one long response of 5,000 low-probability tokens, and value rollouts that end at once."""

    gives_entropies, restarts, version, busy = False, 0, 0, False

    def __init__(self):
        self.waiting = []

    def submit(self, requests):
        self.waiting += requests
        self.busy = bool(self.waiting)

    def step(self):
        asked, self.waiting, self.busy = self.waiting, [], False
        return [
            Completion(r.request_id, np.full(n, 5, np.int32), np.full(n, -1.0, np.float32), True)
            for r in asked
            for n in [2 if len(r.token_ids) > 1 else SEGMENTS]
        ]

    def release(self, request_id): ...


@pytest.mark.parametrize("value", VALUES[1:], ids=["monte_carlo", "adaptive_monte_carlo"])
def test_growing(value):
    rollout = RolloutParams(questions=1, branch_factors=(1,), context_length=2 * SEGMENTS)
    options = {
        "seed": 0,
        "iteration": 1,
        "version": 0,
        "grade": lambda ended: [(1.0, "")] * len(ended),
        "stop": lambda ids, known=0: None,
    }
    with soon("growing"):
        (tree,) = Sampler(Instant(), rollout, credit(value), **options).grow([Prompt("q", (4,))])
    assert sum(node.trainable for node in tree.nodes) == SEGMENTS
    assert max(tree.depths) >= SEGMENTS


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)
