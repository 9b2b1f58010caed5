from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_core.credit import assign_credit, read_credits
from spo_core.credit.pairs import read_places, write_pairs
from spo_core.errors import DataError
from spo_core.tree import FinishReason, Node, RolloutTree, read_trees, write_trees
from tests.conftest import random_tree
from tests.observe.examples import TREE


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


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 7))
def test_a_tree_is_read_alone_whatever_the_layout(tmp_path_factory, seed, limit, count):
    """Rows and metadata do not tell how they are grouped; a group holds whole trees, and one too large has its own."""
    rng = np.random.default_rng(seed)
    trees = [random_tree(rng, depth=int(rng.integers(1, 4)), widest=3, longest=5) for _ in range(count)]
    trees = [replace(tree, question_id=f"q{number}") for number, tree in enumerate(trees)]
    credits = [assign_credit(tree, TREE) for tree in trees]
    folder = tmp_path_factory.mktemp("trees")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("spo_core.tree.GROUP_TOKENS", limit)
        write_pairs(folder, list(zip(trees, credits, strict=True)))
    for name in ("trees.parquet", "credits.parquet"):
        with pq.ParquetFile(folder / name) as file:
            groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        inside = iter(trees)
        for rows in groups:
            own = []
            while sum(len(tree.nodes) for tree in own) < rows:
                own.append(next(inside))
            assert sum(len(tree.nodes) for tree in own) == rows
            assert len(own) == 1 or sum(int(tree.lengths.sum()) for tree in own) <= limit
        assert next(inside, None) is None
    places = read_places(folder / "trees.parquet")
    assert [question for question, _ in places] == [tree.question_id for tree in trees]
    write_old_layout(folder)
    for where in (folder, folder / "old"):
        assert all(equal(a, b) for a, b in zip(trees, read_trees(where / "trees.parquet"), strict=True))
        for tree, credit, (_, rows) in zip(trees, credits, places, strict=True):
            (alone,) = read_trees(where / "trees.parquet", rows)
            (own,) = read_credits(where / "credits.parquet", [alone], rows)
            assert equal(alone, tree) and np.array_equal(own.values, credit.values, equal_nan=True)
            assert all(map(np.array_equal, own.advantages, credit.advantages))
            assert all(map(np.array_equal, own.masks, credit.masks))


def write_old_layout(folder: Path) -> None:
    """The same tables in one row group each, as they were written before groups."""
    (folder / "old").mkdir()
    for name in ("trees.parquet", "credits.parquet"):
        pq.write_table(pq.read_table(folder / name), folder / "old" / name, compression="zstd")


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
