"""What is drawn of a tree: parts of the update, texts of tokens, branches."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from spo_core.credit import assign_credit
from spo_core.observe import tree_view as module
from spo_core.observe.tree_view import tree_view
from spo_core.tree import FinishReason, Node, RolloutTree
from tests.observe.examples import TREE, chain_tree, decode, full_tree, leaf, node, prompt


def view_of(*nodes: Node, decode=decode):
    tree = RolloutTree("q", tuple(nodes))
    return tree_view(tree, assign_credit(tree, TREE), "a question", decode)


def test_parts_follow_mask_and_advantage():
    sure = Node.sampled(0, [97, 98], np.log([0.5, 0.95]), FinishReason.STOP, reward=1.0, outcome="correct")
    view = view_of(prompt(), sure, leaf(0, "c", False))
    right, wrong = (branch.segments[0] for branch in view.root.branches)
    assert [piece.part for piece in right.pieces] == ["trained", "outside"]
    assert right.pieces[0].probability == (np.exp(np.float64(np.float32(np.log(0.5)))),) * 2
    assert (right.advantage, wrong.advantage, right.strength) == (0.5, -0.5, 1.0)
    assert view.trained_tokens == 2 and view.segments_with_advantage == 2
    equal = view_of(prompt(), leaf(0, "a", True), leaf(0, "b", True))
    assert {piece.part for b in equal.root.branches for piece in b.segments[0].pieces} == {"idle"}
    assert equal.trained_tokens == 0


def test_counts_agree_with_the_tree():
    tree, credit, question = full_tree()
    view = tree_view(tree, credit, question, decode)
    assert view.root.responses == 216
    assert view.root.correct == sum(tree.nodes[i].outcome == "correct" for i in tree.leaves)
    assert view.tokens == tree.generated_tokens
    assert [b.responses for b in view.root.branches] == [36] * 6


def test_the_strongest_advantage_is_in_sight():
    def visible(branch):
        yield branch.segments[0].strength
        for below in branch.branches if branch.is_open else ():
            yield from visible(below)

    seen = list(visible(tree_view(*full_tree(), decode).root))
    assert len(seen) == 1 + 6 + 6 + 6
    assert max(seen) == 1.0


def all_branches(branch):
    yield branch
    for below in branch.branches:
        yield from all_branches(below)


def test_a_trajectory_is_one_branch():
    view = tree_view(*chain_tree(), decode)
    first, second = view.root.branches
    assert [segment.index for segment in first.segments] == [1, 2, 3]
    assert [segment.fan for segment in first.segments] == [{"wrong": 5, "correct": 4}, {"correct": 7, "wrong": 2}, {}]
    assert first.segments[1].value == 7 / 9
    assert np.isnan(view.root.segments[0].value)
    assert (first.correct, second.correct, view.value_rollouts) == (1, 0, 18)


def test_a_character_of_several_tokens_is_one_piece():
    def bytes_decode(ids):
        return bytes(ids).decode("utf-8", errors="replace")

    text = "é=€\n".encode()
    whole = Node.sampled(0, list(text), [-0.5] * len(text), FinishReason.STOP, reward=1.0, outcome="correct")
    view = view_of(prompt(), whole, leaf(0, "3", False), decode=bytes_decode)
    assert [piece.text for piece in view.root.branches[0].segments[0].pieces] == ["é", "=", "€", "⏎"]


def test_spaces_that_a_token_alone_would_lose_are_kept():
    words = {0: "▁the", 1: "▁cat", 2: "s", 3: "<eos>"}

    def sentencepiece_decode(ids):
        return "".join(words[i] for i in ids if i != 3).replace("▁", " ").removeprefix(" ")

    def tokens(parent, ids, finish, **more):
        return Node.sampled(parent, ids, [-0.5] * len(ids), finish, **more)

    nodes = (
        Node.prompt([0]),
        tokens(0, [1, 2], FinishReason.SEGMENT),
        tokens(1, [0, 1, 3], FinishReason.STOP, reward=1.0, outcome="correct"),
    )
    first, second = view_of(*nodes, decode=sentencepiece_decode).root.branches[0].segments
    assert [piece.text for piece in first.pieces] == [" cat", "s"]
    assert [piece.text for piece in second.pieces] == [" the", " cat", "⟨3⟩"]


def test_pieces_of_a_large_tree_are_joined(monkeypatch):
    tree, credit, question = full_tree(branch=2, depth=2)
    single = tree_view(tree, credit, question, decode)
    monkeypatch.setattr(module, "MOST_SINGLE_TOKENS", 10)
    joined = tree_view(tree, credit, question, decode)
    for one, other in zip(all_branches(single.root), all_branches(joined.root), strict=True):
        few, many = other.segments[0].pieces, one.segments[0].pieces
        assert "".join(p.text for p in few) == "".join(p.text for p in many)
        assert all(a.part != b.part for a, b in pairwise(few))
        assert min(p.probability[0] for p in few) == min(p.probability[0] for p in many)


def test_a_response_that_goes_on_has_no_outcome():
    view = view_of(prompt(), node(0, "ab"), leaf(1, "c", True), leaf(1, "d", False))
    inner = view.root.branches[0]
    assert not inner.segments[0].ends
    assert [b.segments[0].ends for b in inner.branches] == [True, True]
