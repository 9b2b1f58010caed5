"""How surprising a response's tokens were so far, for a critic: log-probs that sampling gives for nothing.

A network that reads tokens alone has to learn anew which of them are wrong; that one was improbable says much of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from spo_core.rollout.seeds import derive_seed
from spo_core.tree import RolloutTree

RARE = (math.log(0.5), math.log(0.1))  # tokens less probable than these are counted
FEATURES = 4 + len(RARE)
WIDTH = 64


def surprises(tree: RolloutTree) -> tuple[np.ndarray, ...]:
    """Per node, float32 [tokens, FEATURES] of the state before each token, from the response's tokens before it.

    log(1 + x) of: minus the sum of log-probs, minus the smallest, minus the last, how many lie below each of RARE, and
    how many tokens there are. All are 0 where a response begins.
    """
    found, ends = [], [np.zeros(FEATURES)]
    for node in tree.nodes:
        if node.parent < 0:
            found.append(np.zeros((len(node.token_ids), FEATURES), np.float32))
            continue
        own, before = -np.minimum(node.logprobs, 0).astype(np.float64), ends[node.parent]
        rows = np.zeros((len(own) + 1, FEATURES))
        rows[0] = before
        rows[1:, 0] = before[0] + np.cumsum(own)
        rows[1:, 1] = np.maximum.accumulate(np.maximum(own, before[1]))
        rows[1:, 2] = own
        for column, limit in enumerate(RARE, start=3):
            rows[1:, column] = before[column] + np.cumsum(own > -limit)
        rows[1:, -1] = before[-1] + 1 + np.arange(len(own))
        ends.append(rows[-1])
        found.append(np.log1p(rows[:-1]).astype(np.float32))
    return tuple(found)


def surprise_head(seed: int) -> nn.Module:
    """What maps the features of states, [tokens, FEATURES], to what is added to a critic's output, [tokens, 1]; 0 until
    it is trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "surprise"))
        last = nn.Linear(WIDTH, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU(), last)


def flat_surprises(trees: Sequence[RolloutTree], order: Sequence[tuple[int, int]]) -> Tensor:
    """The features of all tokens of some nodes, float32 [tokens, FEATURES]; ``order`` has the nodes' (tree, node)."""
    of_trees = {i: surprises(trees[i]) for i in sorted({i for i, _ in order})}
    return torch.from_numpy(np.concatenate([of_trees[i][node] for i, node in order]))
