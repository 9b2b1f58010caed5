"""RolloutTree: everything sampled, in one shape, and its Parquet form (one row per node).

A node is a *segment*: the token ids the engine produced, never re-tokenised text. The root is the prompt.
GRPO is a tree of depth 1; SPO-tree has fixed-length segments; SPO-chain is a spine of segments cut from one
trajectory, with fans of value rollouts (``trainable=False``) hanging off the cuts, one fan for equal states.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from spo_core.errors import DataError

SCHEMA_VERSION = "1"


class Finish(StrEnum):
    """Why a segment ended."""

    PROMPT = "prompt"  # the root; nothing was sampled
    SEGMENT = "segment"  # reached its segment length or a cutpoint; the response goes on below
    STOP = "stop"  # the policy ended the response
    LENGTH = "length"  # the context or completion limit cut the response off


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """One segment. ``token_ids`` int32 [n], ``logprobs`` float32 [n]: of the sampling (temperature-scaled) policy."""

    parent: int
    token_ids: np.ndarray
    logprobs: np.ndarray
    finish: Finish
    trainable: bool = True
    reward: float = math.nan
    outcome: str = ""

    @classmethod
    def sampled(cls, parent: int, token_ids: ArrayLike, logprobs: ArrayLike, finish: Finish, **more: Any) -> Node:
        return cls(parent, np.asarray(token_ids, np.int32), np.asarray(logprobs, np.float32), finish, **more)

    @classmethod
    def prompt(cls, token_ids: ArrayLike) -> Node:
        ids = np.asarray(token_ids, np.int32)
        return cls(-1, ids, np.zeros(len(ids), np.float32), Finish.PROMPT, trainable=False)


@dataclass(frozen=True, eq=False)
class RolloutTree:
    """All segments sampled for one question; parents stand before their children, the root is node 0."""

    question_id: str
    nodes: tuple[Node, ...]
    policy_version: int = 0
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

    @property
    def generated_tokens(self) -> int:
        return sum(len(n.token_ids) for n in self.nodes[1:])

    def with_rewards(self, graded: dict[int, tuple[float, str]]) -> RolloutTree:
        """The same tree with (reward, outcome) set on the given leaves."""
        nodes = list(self.nodes)
        for index, (reward, outcome) in graded.items():
            n = nodes[index]  # replace() would take three times as long
            nodes[index] = Node(n.parent, n.token_ids, n.logprobs, n.finish, n.trainable, float(reward), outcome)
        return replace(self, nodes=tuple(nodes))


def validate(tree: RolloutTree) -> None:
    """Raise DataError where a tree breaks an invariant; cheap enough to run on every tree."""

    def refuse(index: int, why: str) -> None:
        raise DataError(f"tree of question {tree.question_id!r}, node {index}: {why}")

    if not tree.nodes or tree.nodes[0].parent != -1 or tree.nodes[0].finish != Finish.PROMPT:
        raise DataError(f"tree of question {tree.question_id!r}: node 0 must be the prompt")
    if len(tree.nodes[0].token_ids) == 0:
        refuse(0, "the prompt has no tokens")
    has_child = np.zeros(len(tree.nodes), bool)
    for index, node in enumerate(tree.nodes[1:], start=1):
        if not 0 <= node.parent < index:
            refuse(index, f"parent {node.parent} does not stand before it")
        if len(node.token_ids) == 0 or len(node.token_ids) != len(node.logprobs):
            refuse(index, f"{len(node.token_ids)} token ids and {len(node.logprobs)} log-probs")
        if not (np.isfinite(node.logprobs).all() and (node.logprobs <= 1e-6).all()):
            refuse(index, "a log-prob is positive or not finite")
        if tree.nodes[node.parent].finish in (Finish.STOP, Finish.LENGTH):
            refuse(index, f"its parent had already ended ({tree.nodes[node.parent].finish})")
        has_child[node.parent] = True
    for index, node in enumerate(tree.nodes):
        if has_child[index] and not math.isnan(node.reward):
            refuse(index, "only leaves carry a reward")


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
    columns: dict[str, list] = {name: [] for name in _SCHEMA.names}
    for tree in trees:
        for index, node in enumerate(tree.nodes):
            row = (
                tree.question_id,
                index,
                node.parent,
                tree.depths[index],
                node.token_ids,
                node.logprobs,
                str(node.finish),
                node.trainable,
                None if math.isnan(node.reward) else node.reward,
                node.outcome,
                tree.policy_version,
                tree.iteration,
            )
            for name, value in zip(_SCHEMA.names, row, strict=True):
                columns[name].append(value)
    schema = _SCHEMA.with_metadata({"spo.schema_version": SCHEMA_VERSION})
    arrays = [pa.array(columns[f.name], type=f.type) for f in _SCHEMA]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path, compression="zstd")


def read_trees(path: Path) -> list[RolloutTree]:
    """Read what ``write_trees`` wrote, bit for bit. Raises DataError for another schema."""
    table = pq.read_table(path)
    found = (table.schema.metadata or {}).get(b"spo.schema_version", b"none").decode()
    if found != SCHEMA_VERSION:
        raise DataError(f"{path}: schema version {found}, this code reads {SCHEMA_VERSION}; sample the trees again")
    trees: list[RolloutTree] = []
    nodes: list[Node] = []
    rows = table.to_pydict()
    for i in range(table.num_rows):
        nodes.append(
            Node(
                rows["parent"][i],
                np.asarray(rows["token_ids"][i], np.int32),
                np.asarray(rows["logprobs"][i], np.float32),
                Finish(rows["finish"][i]),
                rows["trainable"][i],
                math.nan if rows["reward"][i] is None else rows["reward"][i],
                rows["outcome"][i],
            )
        )
        if i + 1 == table.num_rows or rows["node"][i + 1] == 0:
            trees.append(
                RolloutTree(rows["question_id"][i], tuple(nodes), rows["policy_version"][i], rows["iteration"][i])
            )
            nodes = []
    return trees
