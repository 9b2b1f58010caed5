"""RolloutTree: everything sampled, in one shape, and its Parquet form (one row per node).

A node is a *segment*: the token ids the engine produced, never re-tokenised text. The root is the prompt.
GRPO is a tree of depth 1; SPO-tree has fixed-length segments; SPO-chain is a spine of segments cut from one
trajectory, with fans of value rollouts (``trainable=False``) hanging off the cuts, one fan for equal states.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from spo_core.errors import DataError

SCHEMA_VERSION = "1"


class FinishReason(StrEnum):
    """Why a segment ended."""

    PROMPT = "prompt"  # the root; nothing was sampled
    SEGMENT = "segment"  # reached its segment length or a cutpoint; the response goes on below
    STOP = "stop"  # the policy ended the response
    LENGTH = "length"  # the context or completion limit cut the response off


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """One segment: ``token_ids`` int32 [n], ``logprobs`` float32 [n] under the sampling policy at its temperature.

    ``parent`` is a node's index, -1 for the root. ``reward`` is NaN and ``outcome`` empty unless graded: leaves only.
    """

    parent: int
    token_ids: np.ndarray
    logprobs: np.ndarray
    finish: FinishReason
    trainable: bool = True
    reward: float = math.nan
    outcome: str = ""

    @classmethod
    def sampled(cls, parent: int, token_ids: ArrayLike, logprobs: ArrayLike, finish: FinishReason, **more: Any) -> Node:
        return cls(parent, np.asarray(token_ids, np.int32), np.asarray(logprobs, np.float32), finish, **more)

    @classmethod
    def prompt(cls, token_ids: ArrayLike) -> Node:
        ids = np.asarray(token_ids, np.int32)
        return cls(-1, ids, np.zeros(len(ids), np.float32), FinishReason.PROMPT, trainable=False)

    def under(self, parent: int) -> Node:
        """The same segment below another node. Fields by hand: replace() would take three times as long."""
        return Node(parent, self.token_ids, self.logprobs, self.finish, self.trainable, self.reward, self.outcome)

    def graded(self, reward: float, outcome: str) -> Node:
        """The same segment, which ends a response, with that response's reward and outcome."""
        return Node(self.parent, self.token_ids, self.logprobs, self.finish, self.trainable, reward, outcome)


@dataclass(frozen=True, eq=False)
class RolloutTree:
    """All segments sampled for one question; parents stand before their children, the root is node 0."""

    question_id: str
    nodes: tuple[Node, ...]
    policy_version: int = 0
    """Optimizer steps that the weights which sampled the tree had made, as ``Trainer.step`` counts them."""
    iteration: int = 0

    def __post_init__(self) -> None:
        validate(self)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Children of every node, in sampling order."""
        lists: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes[1:], start=1):
            lists[node.parent].append(index)
        return tuple(tuple(c) for c in lists)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        depths = [0]
        for node in self.nodes[1:]:
            depths.append(depths[node.parent] + 1)
        return tuple(depths)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of every node; int64 [nodes]."""
        return np.array([len(node.token_ids) for node in self.nodes], np.int64)

    @cached_property
    def completion_lengths(self) -> tuple[int, ...]:
        """Tokens of the response up to the end of every node, without the prompt."""
        ends = [0]
        for node in self.nodes[1:]:
            ends.append(ends[node.parent] + len(node.token_ids))
        return tuple(ends)

    @property
    def leaves(self) -> list[int]:
        return [i for i, c in enumerate(self.children) if not c]

    def path(self, index: int) -> list[int]:
        """Node indices from the root to ``index``, both included."""
        path = [index]
        while (parent := self.nodes[path[-1]].parent) >= 0:
            path.append(parent)
        return path[::-1]

    def completion(self, index: int) -> np.ndarray:
        """Token ids of the response up to the end of node ``index``, without the prompt; int32 [n]."""
        parts = [self.nodes[i].token_ids for i in self.path(index)[1:]]
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)

    @cached_property
    def depth_first(self) -> tuple[int, ...]:
        """All nodes, each before its children, and these in order."""
        order, waiting = [], [0]
        while waiting:
            order.append(waiting.pop())
            waiting += reversed(self.children[order[-1]])
        return tuple(order)

    def completions(self) -> Iterator[tuple[int, np.ndarray]]:
        """Every node's index and ``completion``, depth first. The tokens are a view that the next step overwrites."""
        ends, response = self.completion_lengths, np.zeros(max(self.completion_lengths), np.int32)
        for index in self.depth_first:
            end, node = ends[index], self.nodes[index]
            if index:
                response[end - len(node.token_ids) : end] = node.token_ids
            yield index, response[:end]

    @property
    def generated_tokens(self) -> int:
        """Number of sampled tokens, value rollouts included."""
        return int(self.lengths[1:].sum())


def validate(tree: RolloutTree) -> None:
    """Raise DataError, naming question and node, where a tree breaks an invariant. Cheap: every new tree runs it."""

    def refuse(index: int, why: str) -> None:
        raise DataError(f"tree of question {tree.question_id!r}, node {index}: {why}")

    nodes = tree.nodes
    if not nodes or nodes[0].parent != -1 or nodes[0].finish != FinishReason.PROMPT:
        raise DataError(f"tree of question {tree.question_id!r}: node 0 must be the prompt")
    if len(nodes[0].token_ids) == 0:
        refuse(0, "the prompt has no tokens")
    has_child = [False] * len(nodes)
    for index, node in enumerate(nodes[1:], start=1):
        if not 0 <= node.parent < index:
            refuse(index, f"parent {node.parent} does not stand before it")
        if len(node.token_ids) == 0 or len(node.token_ids) != len(node.logprobs):
            refuse(index, f"{len(node.token_ids)} token ids and {len(node.logprobs)} log-probs")
        if nodes[node.parent].finish in _ENDED:
            refuse(index, f"its parent had already ended ({nodes[node.parent].finish})")
        has_child[node.parent] = True
    logprobs = np.concatenate([_NO_LOGPROBS, *(node.logprobs for node in nodes[1:])])
    wrong = ~(logprobs <= 1e-6) | (logprobs == -np.inf)  # the first is true of NaN too
    if wrong.any():
        ends = np.cumsum(tree.lengths[1:])
        refuse(int(np.searchsorted(ends, np.argmax(wrong), side="right")) + 1, "a log-prob is positive or not finite")
    for index, node in enumerate(nodes):
        if has_child[index] and not math.isnan(node.reward):
            refuse(index, "only leaves carry a reward")


_ENDED = frozenset((FinishReason.STOP, FinishReason.LENGTH))
_NO_LOGPROBS = np.zeros(0, np.float32)


def pruned(tree: RolloutTree, needed: np.ndarray) -> tuple[RolloutTree, np.ndarray]:
    """Prune a tree to its ``needed`` nodes (bool [nodes]) and their ancestors; returns it and the kept nodes' indices.

    Trainable siblings of these nodes stay too, cut to their first token: how many continuations a state had is part of
    what advantages and episodes mean.
    """
    inside, nodes = needed.copy(), tree.nodes
    inside[0] = True
    for index in range(len(nodes) - 1, 0, -1):
        if inside[index]:
            inside[nodes[index].parent] = True
    beside = np.zeros(len(nodes), bool)
    for children in tree.children:
        trainable = [c for c in children if nodes[c].trainable]
        if inside[trainable].any():
            beside[trainable] = True
    kept = np.flatnonzero(inside | beside)
    if len(kept) == len(nodes) and not (tree.lengths[~inside] > 1).any():
        return tree, kept
    place = np.full(len(nodes), -1)
    place[kept] = np.arange(len(kept))
    short = (nodes[i] if inside[i] else _first_token(nodes[i]) for i in kept.tolist())
    moved = tuple(n if n.parent < 0 else n.under(int(place[n.parent])) for n in short)
    return replace(tree, nodes=moved), kept


def _first_token(n: Node) -> Node:
    return Node(n.parent, n.token_ids[:1], n.logprobs[:1], n.finish, n.trainable, n.reward, n.outcome)


_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("node", pa.int32()),
        ("parent", pa.int32()),
        ("depth", pa.int32()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("finish", pa.dictionary(pa.int8(), pa.string())),
        ("trainable", pa.bool_()),
        ("reward", pa.float64()),
        ("outcome", pa.dictionary(pa.int8(), pa.string())),
        ("policy_version", pa.int32()),
        ("iteration", pa.int32()),
    ]
)


def write_trees(path: Path, trees: Iterable[RolloutTree]) -> None:
    """Write trees to one Parquet file, a row per node, in order."""
    trees = list(trees)
    nodes = [node for tree in trees for node in tree.nodes]
    counts = [len(tree.nodes) for tree in trees]
    rewards = np.array([node.reward for node in nodes], np.float64)
    columns: dict[str, Any] = {
        "question_id": np.repeat(np.array([tree.question_id for tree in trees], object), counts),
        "node": np.concatenate([_NO_IDS, *(np.arange(count, dtype=np.int32) for count in counts)]),
        "parent": np.array([node.parent for node in nodes], np.int32),
        "depth": np.array([depth for tree in trees for depth in tree.depths], np.int32),
        "token_ids": ragged([node.token_ids for node in nodes], np.int32),
        "logprobs": ragged([node.logprobs for node in nodes], np.float32),
        "finish": [str(node.finish) for node in nodes],
        "trainable": np.array([node.trainable for node in nodes], bool),
        "reward": pa.array(rewards, mask=np.isnan(rewards)),
        "outcome": [node.outcome for node in nodes],
        "policy_version": np.repeat(np.array([tree.policy_version for tree in trees], np.int32), counts),
        "iteration": np.repeat(np.array([tree.iteration for tree in trees], np.int32), counts),
    }
    schema = _SCHEMA.with_metadata({"spo.schema_version": SCHEMA_VERSION})
    arrays = [c if isinstance(c := columns[f.name], pa.Array) else pa.array(c, type=f.type) for f in _SCHEMA]
    write_rows(path, pa.Table.from_arrays(arrays, schema=schema), trees, use_dictionary=_REPEATED)


GROUP_TOKENS = 1 << 18
"""Tokens of the trees that share a row group of their file; a tree of more has one of its own, and is read alone."""


def write_rows(path: Path, table: pa.Table, trees: Sequence[RolloutTree], **options: Any) -> None:
    """Write a table with a row for each node of ``trees`` to Parquet, in row groups of whole trees."""
    bounds, rows, tokens = [0], 0, 0
    for tree in trees:
        own = int(tree.lengths.sum())
        if tokens and tokens + own > GROUP_TOKENS:
            bounds.append(rows)
            tokens = 0
        rows, tokens = rows + len(tree.nodes), tokens + own
    with pq.ParquetWriter(path, table.schema, compression="zstd", **options) as writer:
        for start, stop in pairwise([*bounds, rows]):
            writer.write_table(table.slice(start, stop - start))


def read_rows(path: Path, rows: range | None = None) -> pa.Table:
    """Read what ``write_rows`` wrote, or of it some successive rows; then other row groups than theirs stay unread."""
    if rows is None:
        return pq.read_table(path)
    with pq.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        ends = np.cumsum(sizes, dtype=np.int64)
        first = int(np.searchsorted(ends, rows.start, side="right"))
        last = int(np.searchsorted(ends, rows.stop, side="left"))
        return file.read_row_groups(list(range(first, last + 1))).slice(
            rows.start - int(ends[first]) + sizes[first], len(rows)
        )


def read_table(path: Path, rows: range | None = None) -> pa.Table:
    """Read the columns that ``write_trees`` wrote. Raises DataError for another schema version."""
    table = read_rows(path, rows)
    found = (table.schema.metadata or {}).get(b"spo.schema_version", b"none").decode()
    if found != SCHEMA_VERSION:
        raise DataError(f"{path}: schema version {found}, this code reads {SCHEMA_VERSION}; sample the trees again")
    return table


def read_trees(path: Path, rows: range | None = None) -> list[RolloutTree]:
    """Read what ``write_trees`` wrote, bit for bit, or those trees that have ``rows``. Raises DataError as
    ``read_table``."""
    table = read_table(path, rows)
    rewards = table["reward"].to_numpy()  # NaN for null
    columns = (
        table["parent"].to_pylist(),
        parts(table["token_ids"]),
        parts(table["logprobs"]),
        map(FinishReason, table["finish"].to_pylist()),
        table["trainable"].to_pylist(),
        rewards.tolist(),
        table["outcome"].to_pylist(),
    )
    nodes = list(map(Node, *columns))
    starts = np.flatnonzero(table["node"].to_numpy() == 0).tolist()
    bounds = pairwise([*starts, len(nodes)])
    of_trees = [table[name].take(pa.array(starts, pa.int64())).to_pylist() for name in _OF_TREES]
    return [
        RolloutTree(question, tuple(nodes[start:stop]), version, iteration)
        for question, version, iteration, (start, stop) in zip(*of_trees, bounds, strict=True)
    ]


_REPEATED = [f.name for f in _SCHEMA if not pa.types.is_list(f.type)] + ["token_ids.list.element"]  # all but log-probs
_OF_TREES = ("question_id", "policy_version", "iteration")
_NO_IDS = np.zeros(0, np.int32)


def ragged(values: Sequence[np.ndarray], kind: type) -> pa.ListArray:
    """A column of lists from arrays of numbers or booleans, one a row."""
    ends = np.cumsum([0, *map(len, values)])
    if ends[-1] > np.iinfo(np.int32).max:
        raise DataError(f"{ends[-1]} tokens in one iteration, more than a column of lists can hold; sample fewer")
    flat = np.concatenate([np.zeros(0, kind), *values])
    return pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), pa.array(flat))


def parts(column: pa.ChunkedArray) -> list[np.ndarray]:
    """The arrays of a column of lists, one a row."""
    found: list[np.ndarray] = []
    for chunk in column.chunks:
        ends = chunk.offsets.to_numpy()
        flat = chunk.values.to_numpy(zero_copy_only=False)
        found += [flat[start:stop] for start, stop in pairwise(ends.tolist())]
    return found
