"""What the benchmarks compare is the same work; their times are not tested."""

import sqlite3

import numpy as np
import pytest

from benchmarks import grpo_vs_trl, orchestration, tree_update
from benchmarks.machine import describe_machine
from tests.flows.conftest import SMALL


def test_both_ways_to_train_a_tree_add_the_same_gradient_and_tokens_fall_as_counted():
    case = tree_update.Case("tiny", 2, 16, 2, 1, 24, vocabulary=32, prompt=8, segment=3)
    model, updates = tree_update.methods(case)
    tree, _, flat = (tree_update.gradient(model, update) for update in updates.values())
    assert float((tree[0] - flat[0]).norm() / flat[0].norm()) < 1e-5
    sampled = case.tree().tree
    paths = [np.append(sampled.nodes[0].token_ids, sampled.completion(leaf)).tolist() for leaf in sampled.leaves]
    # the last token of a leaf predicts nothing, and of 32 token ids some siblings begin alike
    assert tree[1] == len({tuple(path[:n]) for path in paths for n in range(1, len(path))})
    assert flat[1] == 6 * 11 + 36 * 14 + 216 * 17


@pytest.mark.slow
@pytest.mark.exhaustive
def test_our_iteration_and_trl_s_sample_as_many_tokens():
    result = grpo_vs_trl.compare(optimizer_steps=2, iterations=1, length=3)
    assert result["completions"] == 512 and all(result[name]["iteration"] > 0 for name in ("ours", "trl"))


def test_the_machine_is_described():
    machine = describe_machine(2)
    assert machine["cpu"] and machine["threads"] == 2 and machine["cores"] >= 1


def test_what_an_iteration_costs_is_what_it_did_not_work():
    spent = [orchestration.Spent(*times) for times in ((0.0, 9.0), (10.0, 0.9, 0.02, 0.01), (11.0, 1.95), (13.0, 1.0))]
    found = orchestration.summarize(spent)
    assert found["measured"] == 2  # neither the first, nor the last
    assert found["milliseconds"]["iteration"]["mean"] == pytest.approx(1500)
    assert found["milliseconds"]["cost"] == pytest.approx({"median": 75.0, "mean": 75.0, "p95": 100.0})
    assert found["milliseconds"]["of it W&B"]["mean"] == pytest.approx(10)
    assert found["share"] == pytest.approx(0.05) and not found["target_met"]


def test_growth_is_counted_in_rows_and_bytes(tmp_path):
    with sqlite3.connect(tmp_path / "a.db") as database:
        database.execute("CREATE TABLE log (text)")
        before = orchestration.sizes(tmp_path / "a.db")
        database.executemany("INSERT INTO log VALUES (?)", [("x" * 1000,)] * 20)
        database.commit()
    found = orchestration.growth(before, orchestration.sizes(tmp_path / "a.db"), 10)
    assert found.keys() == {"log", "bytes"} and found["log"] == 2 and found["bytes"] >= 2000


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_cost_of_orchestration_is_measured_on_a_real_server():
    small = orchestration.merged(SMALL, {"policy": {"warmup": {"steps": 10}}})
    found = orchestration.measure(4, small)
    cost, whole = (found["milliseconds"][name]["median"] for name in ("cost", "iteration"))
    assert found["measured"] == 2 and 0 < cost < whole
    assert found["database_per_iteration"]["task_run"] >= 3  # rollout, advantage, train
