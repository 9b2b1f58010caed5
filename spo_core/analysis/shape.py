"""What the credit of a candidate's trees looks like: its spread, where cuts fall, and how much of it says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spo_core.credit.pairs import CreditedTree
from spo_core.tree import FinishReason

PERCENTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles (PERCENTILES), mean and number of what was counted; no percentiles of nothing."""

    percentiles: tuple[float, ...]
    mean: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Spread:
        finite = np.asarray(values, np.float64)
        finite = finite[np.isfinite(finite)]
        if not len(finite):
            return cls((), float("nan"), 0)
        return cls(tuple(np.percentile(finite, PERCENTILES).tolist()), float(finite.mean()), len(finite))


@dataclass(frozen=True, slots=True)
class Shape:
    """Counted over trained segments, their tokens, and the groups of siblings among them."""

    advantages: Spread
    """Of the segments that have one."""
    values: Spread
    cut_probability: Spread
    """Probability of the token behind a cut, under the policy that sampled it."""
    cut_entropy: Spread
    """Entropy in nats of the distribution that this token was drawn from."""
    segment_tokens: Spread
    silent_segments: float
    """Share of segments that change nothing."""
    silent_tokens: float
    """Share of tokens that change nothing: masked, or without an advantage."""
    silent_groups: float
    """Share of groups of two or more siblings in which none changes anything; NaN where no segment has siblings."""
    equal_siblings: float
    """Share of segments that have a sibling of equal token ids, and so are valued twice for one state."""


def shape(pairs: Sequence[CreditedTree], cut_entropies: np.ndarray) -> Shape:
    """Describe credited trees; ``cut_entropies`` [cuts] as ``forwarded.cut_entropies`` finds them."""
    advantages, values, cuts, lengths, silent, groups, equal = [], [], [], [], [], [], []
    trained = tokens = 0
    for tree, credit in pairs:
        for index, node in enumerate(tree.nodes):
            below = [c for c in tree.children[index] if tree.nodes[c].trainable]
            if len(below) > 1:
                groups.append(not any(credit.trains(c) for c in below))
                contents = [tree.nodes[c].token_ids.tobytes() for c in below]
                equal += [contents.count(own) > 1 for own in contents]
            if not node.trainable:
                continue
            silent.append(not credit.trains(index))
            lengths.append(len(node.token_ids))
            counted = credit.masks[index] & (credit.advantages[index] != 0)
            trained, tokens = trained + int(counted.sum()), tokens + len(counted)
            values.append(credit.values[index])
            if credit.trains(index):
                advantages.append(credit.advantage(index))
            if tree.nodes[node.parent].finish is FinishReason.SEGMENT and len(node.logprobs):
                cuts.append(float(np.exp(node.logprobs[0])))
    return Shape(
        Spread.of(advantages),
        Spread.of(values),
        Spread.of(cuts),
        Spread.of(cut_entropies),
        Spread.of(lengths),
        _share(silent),
        1 - trained / tokens if tokens else float("nan"),
        _share(groups),
        _share(equal),
    )


def _share(found: Sequence[bool]) -> float:
    return float(np.mean(found)) if found else float("nan")
