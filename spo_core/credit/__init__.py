"""Credit assignment: value x advantage x mask of a sampled tree, chosen by ``params/credit.yaml``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spo_core.config import CreditParams
from spo_core.credit.advantage import ROUNDING, node_advantages
from spo_core.credit.mask import is_certain, is_low, token_mask
from spo_core.credit.value import check_values, node_values
from spo_core.errors import DataError
from spo_core.tree import Node, RolloutTree


@dataclass(frozen=True, eq=False, slots=True)
class Credit:
    """Of one tree: ``values`` float64 [nodes]; per node ``advantages`` float32 [tokens] and ``masks`` bool [tokens]."""

    values: np.ndarray
    advantages: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...]

    def trains(self, index: int) -> bool:
        """Whether any token of the node changes the policy."""
        return bool((self.masks[index] & (self.advantages[index] != 0)).any())


def assign_credit(tree: RolloutTree, params: CreditParams) -> Credit:
    """Value, advantage and mask of every node. Raises TrainingError as :func:`segment_credit`."""
    values, advantages = segment_credit(tree, params)
    nodes = tree.nodes
    return Credit(
        values,
        tuple(_token_advantages(n, a, params) for n, a in zip(nodes, advantages, strict=True)),
        tuple(token_mask(n.logprobs, params.mask) if n.trainable else np.zeros(len(n.token_ids), bool) for n in nodes),
    )


def segment_credit(tree: RolloutTree, params: CreditParams) -> tuple[np.ndarray, np.ndarray]:
    """Values (NaN where not estimated) and advantages of all nodes, both float64 [nodes].

    Raises TrainingError where a value that counts is missing; see ``value.check_values``.
    """
    values = node_values(tree, params.value)
    check_values(tree, values, params.value)
    advantages = node_advantages(tree, values, params.advantage)
    advantages[np.abs(advantages) < ROUNDING] = 0.0
    if params.partition.type == "cutpoints":  # tokens before a trajectory's first low one: A = 0, even if another
        for index, node in enumerate(tree.nodes):  # trajectory had the prompt valued (reference facts 1.1 step 7)
            if not is_low(node.logprobs, params.partition.prob_threshold).any():
                advantages[index] = 0.0
    return values, advantages


def _token_advantages(node: Node, segment: float, params: CreditParams) -> np.ndarray:
    """The segment's advantage at every token, float32 [tokens]; with cutpoints 0 at tokens more probable than the
    threshold, and not at one exactly there (reference facts 1.1 step 7)."""
    advantages = np.full(len(node.token_ids), segment, np.float32)
    if params.partition.type == "cutpoints":
        advantages[is_certain(node.logprobs, params.partition.prob_threshold)] = 0.0
    return advantages


def write_credits(path: Path, trees: Iterable[RolloutTree], credits: Iterable[Credit]) -> None:
    """One Parquet row per node, in the order of ``tree.write_trees``."""
    rows: dict[str, list] = {"question_id": [], "node": [], "value": [], "advantages": [], "mask": []}
    for tree, credit in zip(trees, credits, strict=True):
        for index in range(len(tree.nodes)):
            rows["question_id"].append(tree.question_id)
            rows["node"].append(index)
            rows["value"].append(credit.values[index])
            rows["advantages"].append(credit.advantages[index])
            rows["mask"].append(credit.masks[index])
    types = [pa.string(), pa.int32(), pa.float64(), pa.list_(pa.float32()), pa.list_(pa.bool_())]
    arrays = [pa.array(column, type=kind) for column, kind in zip(rows.values(), types, strict=True)]
    pq.write_table(pa.Table.from_arrays(arrays, names=list(rows)), path, compression="zstd")


def read_credits(path: Path, trees: Iterable[RolloutTree]) -> list[Credit]:
    """Read what ``write_credits`` wrote; raises DataError where the rows are not those trees' nodes."""
    rows = pq.read_table(path).to_pydict()
    credits, start = [], 0
    for tree in trees:
        stop = start + len(tree.nodes)
        if rows["question_id"][start:stop] != [tree.question_id] * len(tree.nodes):
            raise DataError(f"{path}: row {start} is not of question {tree.question_id!r}; assign credit again")
        advantages = tuple(np.asarray(a, np.float32) for a in rows["advantages"][start:stop])
        masks = tuple(np.asarray(m, bool) for m in rows["mask"][start:stop])
        if [len(a) for a in advantages] != [len(node.token_ids) for node in tree.nodes]:
            raise DataError(f"{path}: token counts of question {tree.question_id!r} differ; assign credit again")
        credits.append(Credit(np.asarray(rows["value"][start:stop], np.float64), advantages, masks))
        start = stop
    return credits
