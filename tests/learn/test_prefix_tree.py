"""Distinct prefixes, and the rows in which they attend, against sets of token ids."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_core.learn.prefix_tree import prefix_tree, stretches
from spo_core.learn.row_blocks import row_blocks
from spo_core.learn.tree_batch import TrainedSegments, layout
from spo_core.tree import FinishReason, Node, RolloutTree
from tests.conftest import random_tree


def alike(seed: int, *, depth: int = 3, alphabet: int = 2) -> RolloutTree:
    """A random tree whose segments often begin alike, within one another too."""
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, depth=depth, widest=4, longest=6)
    nodes = (Node.prompt(rng.integers(0, alphabet, len(tree.nodes[0].token_ids))),)
    for n in tree.nodes[1:]:
        nodes += (Node.sampled(n.parent, rng.integers(0, alphabet, len(n.token_ids)), n.logprobs, n.finish),)
    return RolloutTree("q", nodes)


def prefixes(tree: RolloutTree, node: int) -> list[tuple[int, ...]]:
    """What ends with each token of a node, from the prompt on."""
    ids = np.concatenate([tree.nodes[i].token_ids for i in tree.path(node)]).tolist()
    own = len(tree.nodes[node].token_ids)
    return [tuple(ids[:end]) for end in range(len(ids) - own + 1, len(ids) + 1)]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_equal_prefixes_are_one_token_and_others_are_not(seed, depth):
    tree = alike(seed, depth=depth)
    merged, places = prefix_tree(tree, range(len(tree.nodes)))
    names: dict[int, tuple[int, ...]] = {}
    for node in range(len(tree.nodes)):
        for number, prefix in zip(places[node].tolist(), prefixes(tree, node), strict=True):
            assert names.setdefault(number, prefix) == prefix and merged.ids[number] == prefix[-1]
    assert len(names) == len(set(names.values())) == merged.count, "each once"


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.02, 0.3, 1.0]))
def test_forwarded_are_the_paths_to_trained_nodes_and_nothing_else(seed, share):
    rng = np.random.default_rng(seed)
    tree = alike(seed)
    masks = [
        rng.random(len(n.token_ids)) < share if n.trainable else np.zeros(len(n.token_ids), bool) for n in tree.nodes
    ]
    needed, pairs = set(), {}
    for node, mask in enumerate(masks):
        if mask.any():
            pairs[node] = [prefix for prefix, wanted in zip(prefixes(tree, node), mask, strict=True) if wanted]
            needed |= {prefix[:end] for prefix in prefixes(tree, node) for end in range(1, len(prefix))}
    batch = layout([TrainedSegments(tree, tuple(masks))])
    assert batch.forwarded_tokens == len(needed)
    found, at = {}, 0
    first, last = batch.first.numpy(), batch.last.numpy()
    for index in range(batch.forwarded_tokens):  # a token's path, by the intervals
        above = np.flatnonzero((first[: index + 1] <= first[index]) & (first[index] <= last[: index + 1]))
        found[index] = tuple(batch.input_ids[above].tolist())
        assert int(batch.position_ids[index]) == len(above) - 1
    assert set(found.values()) == needed
    assert [node for _, node in batch.order] == sorted(pairs, key=lambda node: (tree.depths[node], node))
    for _, node in batch.order:
        for prefix in pairs[node]:
            assert found[int(batch.sources[at])] == prefix[:-1] and int(batch.targets[at]) == prefix[-1]
            at += 1
    assert at == len(batch.targets)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2**32), max_size=4))
def test_every_token_is_one_query_and_its_path_is_among_the_keys_once(seeds):
    trees = []
    for seed in seeds:
        merged, _ = prefix_tree(tree := alike(seed), range(len(tree.nodes)))
        trees.append(stretches(merged, np.random.default_rng(seed).random(merged.count) < 0.5))
    sizes = [[len(stretch.tokens) for stretch in own] for own in trees]
    starts = np.cumsum([0, *(size for own in sizes for size in own)])
    paths = {}
    for own, begin in zip(trees, np.cumsum([0, *map(len, trees)]).tolist(), strict=False):
        for number, stretch in enumerate(own):
            before = paths[begin + stretch.parent][-1] if stretch.parent >= 0 else []
            range_ = range(starts[begin + number], starts[begin + number + 1])
            paths[begin + number] = [before + list(range_[: i + 1]) for i in range(len(range_))]
    wanted = {path[-1]: path for own in paths.values() for path in own}
    blocks, slots = row_blocks(trees, "cpu")
    queries = np.concatenate([np.zeros(0, np.int64), *(block.queries.numpy().ravel() for block in blocks)])
    assert queries[slots.numpy()].tolist() == list(range(int(starts[-1])))
    for block in blocks:
        for row, keys in enumerate(block.keys.numpy()):
            valid = keys if block.valid is None else keys[block.valid.numpy()[row]]
            assert len(set(valid.tolist())) == len(valid)
            assert all(set(wanted[query]) <= set(valid.tolist()) for query in block.queries.numpy()[row].tolist())


def test_a_response_cut_into_thousands_of_segments_is_one_stretch():
    nodes = [Node.prompt([1, 2])]
    nodes += [Node.sampled(i, [3, 4], [-1, -1], FinishReason.SEGMENT) for i in range(4999)]
    nodes.append(Node.sampled(4999, [5], [-1], FinishReason.STOP))
    tree = RolloutTree("q", tuple(nodes))
    batch = layout([TrainedSegments(tree, tuple(np.full(len(n.token_ids), n.trainable) for n in nodes))])
    assert batch.forwarded_tokens == 2 + 2 * 4999 and int(batch.last.max()) == 0
    assert batch.position_ids.tolist() == list(range(batch.forwarded_tokens))


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_wanted_is_nothing(count):
    tree = alike(0)
    merged, _ = prefix_tree(tree, range(count))
    assert stretches(merged, np.zeros(merged.count, bool)) == []
