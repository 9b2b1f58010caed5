"""What the benchmarks compare is the same work; their times are not tested."""

from benchmarks import grpo_vs_trl, tree_update
from benchmarks.machine import describe_machine


def test_both_ways_to_train_a_tree_add_the_same_gradient_and_tokens_fall_as_counted():
    case = tree_update.Case("tiny", 2, 16, 2, 1, 24, vocabulary=32, prompt=8, segment=3)
    model, updates = tree_update.methods(case)
    tree, _, flat = (tree_update.gradient(model, update) for update in updates.values())
    assert float((tree[0] - flat[0]).norm() / flat[0].norm()) < 1e-5
    unique = 8 + 3 * (6 + 36 + 216)
    assert tree[1] == unique - 216  # the last token of a leaf predicts nothing
    assert flat[1] == 6 * 11 + 36 * 14 + 216 * 17


def test_our_iteration_and_trl_s_sample_as_many_tokens():
    result = grpo_vs_trl.compare(optimizer_steps=2, iterations=1, length=3)
    assert result["completions"] == 512 and all(result[name]["iteration"] > 0 for name in ("ours", "trl"))


def test_the_machine_is_described():
    machine = describe_machine(2)
    assert machine["cpu"] and machine["threads"] == 2 and machine["cores"] >= 1
