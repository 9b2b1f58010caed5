import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_core.errors import DataError
from spo_core.tree import FinishReason, Node, RolloutTree, read_trees, write_trees
from tests.conftest import random_tree


def equal(a: RolloutTree, b: RolloutTree) -> bool:
    return (a.question_id, a.policy_version, a.iteration, len(a.nodes)) == (
        b.question_id,
        b.policy_version,
        b.iteration,
        len(b.nodes),
    ) and all(
        x.parent == y.parent
        and np.array_equal(x.token_ids, y.token_ids)
        and np.array_equal(x.logprobs, y.logprobs)
        and (x.finish, x.trainable, x.outcome) == (y.finish, y.trainable, y.outcome)
        and np.array_equal([x.reward], [y.reward], equal_nan=True)
        for x, y in zip(a.nodes, b.nodes, strict=True)
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_parquet_gives_back_the_same_bits(tmp_path_factory, seed, depth):
    rng = np.random.default_rng(seed)
    trees = [random_tree(rng, depth=depth, widest=3, longest=5) for _ in range(3)]
    path = tmp_path_factory.mktemp("trees") / "trees.parquet"
    write_trees(path, trees)
    back = read_trees(path)
    assert len(back) == 3 and all(equal(a, b) for a, b in zip(trees, back, strict=True))


def test_no_trees_is_a_file_too(tmp_path):
    write_trees(tmp_path / "t.parquet", [])
    assert read_trees(tmp_path / "t.parquet") == []


def test_path_and_completion_leave_the_prompt_out():
    tree = RolloutTree(
        "q",
        (
            Node.prompt([1, 2]),
            Node.sampled(0, [3, 4], [-1, -1], FinishReason.SEGMENT),
            Node.sampled(1, [5], [-1], FinishReason.STOP, reward=1.0),
        ),
    )
    assert tree.path(2) == [0, 1, 2]
    assert tree.completion(2).tolist() == [3, 4, 5]
    assert tree.completion(0).tolist() == []
    assert (tree.depths, tree.children, tree.leaves) == ((0, 1, 2), ((1,), (2,), ()), [2])
    assert tree.generated_tokens == 3


PROMPT = Node.prompt([1])


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ((Node.sampled(-1, [1], [-1.0], FinishReason.STOP),), "node 0 must be the prompt"),
        ((PROMPT, Node.sampled(1, [1], [-1.0], FinishReason.STOP)), "parent 1"),
        ((PROMPT, Node.sampled(0, [1, 2], [-1.0], FinishReason.STOP)), "2 token ids and 1 log-probs"),
        ((PROMPT, Node.sampled(0, [], [], FinishReason.STOP)), "0 token ids"),
        ((PROMPT, Node.sampled(0, [1], [0.5], FinishReason.STOP)), "positive"),
        ((PROMPT, Node.sampled(0, [1], [np.nan], FinishReason.STOP)), "not finite"),
        (
            (PROMPT, Node.sampled(0, [1], [-1], FinishReason.STOP), Node.sampled(1, [1], [-1], FinishReason.STOP)),
            "already ended",
        ),
        (
            (
                PROMPT,
                Node.sampled(0, [1], [-1], FinishReason.SEGMENT, reward=1.0),
                Node.sampled(1, [1], [-1], FinishReason.STOP),
            ),
            "only leaves",
        ),
    ],
)
def test_a_broken_invariant_is_refused(nodes, says):
    with pytest.raises(DataError, match=says):
        RolloutTree("q", nodes)
