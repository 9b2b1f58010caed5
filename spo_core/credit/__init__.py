"""Credit of a sampled tree: partition, value, advantage, mask. Not here: sampling; anything that needs torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from spo_core.config import GAE, CreditParams
from spo_core.credit.advantage import ROUNDING, node_advantages
from spo_core.credit.gae import token_gae
from spo_core.credit.mask import is_certain, is_low, token_mask
from spo_core.credit.value import check_values, node_values
from spo_core.errors import DataError
from spo_core.tree import RolloutTree, parts, pruned, ragged, read_rows, write_rows


@dataclass(frozen=True, eq=False, slots=True)
class Credit:
    """Credit of one tree: ``values`` float64 [nodes]; per node, ``advantages`` float32 and ``masks`` bool [tokens]."""

    values: np.ndarray
    advantages: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...]

    def trains(self, index: int) -> bool:
        """Whether any token of the node changes the policy."""
        return bool((self.masks[index] & (self.advantages[index] != 0)).any())

    def advantage(self, index: int) -> float:
        """The node's advantage: its strongest token's, because SPO-chain zeroes it at tokens that were certain."""
        own = self.advantages[index]
        return float(own[np.abs(own).argmax()]) if len(own) else 0.0


def assign_credit(tree: RolloutTree, params: CreditParams, before: Sequence[np.ndarray] | None = None) -> Credit:
    """Value, advantage and mask of every node. ``before``: values of the states before each token, per node [tokens],
    where ``credit.value`` is critic or gold_answer. Raises TrainingError where :func:`segment_credit` does."""
    values, of_nodes = segment_credit(tree, params, before)
    logprobs, lengths = np.concatenate([node.logprobs for node in tree.nodes]), tree.lengths
    advantages = np.repeat(of_nodes.astype(np.float32), lengths)
    if isinstance(params.advantage, GAE) and params.advantage.over == "tokens":
        assert before is not None
        advantages = np.concatenate(token_gae(tree, before, params.advantage.lambda_)).astype(np.float32)
        advantages[np.abs(advantages) < ROUNDING] = 0.0
    if params.partition.type == "cutpoints":
        # 0 at tokens more probable than the threshold, and not at one exactly there (docs/reference.md 1.1 step 7)
        advantages[is_certain(logprobs, params.partition.prob_threshold)] = 0.0
    mask = token_mask(logprobs, params.mask) & np.repeat([node.trainable for node in tree.nodes], lengths)
    return Credit(values, by_node(advantages, lengths), by_node(mask, lengths))


def by_node(values: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, ...]:
    """Split an array over all tokens of a tree, [tokens], into one view per node, [tokens of the node]."""
    return tuple(values[start:stop] for start, stop in pairwise([0, *np.cumsum(lengths).tolist()]))


def segment_credit(
    tree: RolloutTree, params: CreditParams, before: Sequence[np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Values (NaN where not estimated) and advantages of all nodes, both float64 [nodes].

    Raises TrainingError where an advantage needs a value that is missing (see ``value.check_values``), and where an
    estimator of the project's own fails or does not give one finite number per node.
    """
    values = node_values(tree, params.value, before)
    check_values(tree, values, params.value)
    advantages = node_advantages(tree, values, params.advantage)
    advantages[np.abs(advantages) < ROUNDING] = 0.0
    if params.partition.type == "cutpoints":
        # tokens before a trajectory's first low one: A = 0, even if another trajectory had the prompt valued
        # (docs/reference.md 1.1 step 7)
        low = is_low(np.concatenate([node.logprobs for node in tree.nodes]), params.partition.prob_threshold)
        starts = np.cumsum(tree.lengths) - tree.lengths
        advantages[~np.logical_or.reduceat(low, starts)] = 0.0
    return values, advantages


def pruned_pair(tree: RolloutTree, credit: Credit, nodes: Iterable[int]) -> tuple[RolloutTree, Credit]:
    """The tree and credit that training ``nodes`` needs: ``tree.pruned`` to them, with no other node in the masks."""
    trained = np.zeros(len(tree.nodes), bool)
    trained[list(nodes)] = True
    smaller, kept = pruned(tree, trained)
    masks, advantages = [], []
    for node, index in zip(smaller.nodes, kept.tolist(), strict=True):
        mask, count = credit.masks[index], len(node.token_ids)
        masks.append(mask if trained[index] else np.zeros(count, bool))
        advantages.append(credit.advantages[index][:count])
    return smaller, Credit(credit.values[kept], tuple(advantages), tuple(masks))


def write_credits(path: Path, trees: Iterable[RolloutTree], credits: Iterable[Credit]) -> None:
    """Write credits to one Parquet file, a row per node in the order of ``tree.write_trees``."""
    trees, credits = list(trees), list(credits)
    counts = [len(tree.nodes) for tree in trees]
    columns = {
        "question_id": pa.array(np.repeat(np.array([tree.question_id for tree in trees], object), counts), pa.string()),
        "node": pa.array(np.concatenate([np.zeros(0, np.int32), *(np.arange(n, dtype=np.int32) for n in counts)])),
        "value": pa.array(np.concatenate([np.zeros(0), *(credit.values for credit in credits)])),
        "advantages": ragged([a for credit in credits for a in credit.advantages], np.float32),
        "mask": ragged([m for credit in credits for m in credit.masks], bool),
    }
    write_rows(path, pa.table(columns), trees)


def read_credits(path: Path, trees: Iterable[RolloutTree], rows: range | None = None) -> list[Credit]:
    """Read what ``write_credits`` wrote, or those ``rows`` of it that are of ``trees``. Raises DataError where the rows
    are not their nodes."""
    table = read_rows(path, rows)
    questions, values = table["question_id"].to_pylist(), table["value"].to_numpy()
    advantages, masks = parts(table["advantages"]), parts(table["mask"])
    credits, start = [], 0
    for tree in trees:
        stop = start + len(tree.nodes)
        if questions[start:stop] != [tree.question_id] * len(tree.nodes):
            raise DataError(f"{path}: row {start} is not of question {tree.question_id!r}; assign credit again")
        if [len(a) for a in advantages[start:stop]] != tree.lengths.tolist():
            raise DataError(f"{path}: token counts of question {tree.question_id!r} differ; assign credit again")
        credits.append(Credit(values[start:stop], tuple(advantages[start:stop]), tuple(masks[start:stop])))
        start = stop
    return credits
