"""How far a policy has gone from the one it started from: distance of weights, and KL over what it samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from spo_core.analysis.bench import Bench
from spo_core.analysis.efficiency import Estimate
from spo_core.analysis.forwarded import forwarded
from spo_core.errors import DataError
from spo_core.learn.precision import working_copy
from spo_core.learn.tree_forward import TreePolicy
from spo_core.policy.checkpoint import load_policy
from spo_core.tree import RolloutTree


@dataclass(frozen=True, slots=True)
class Drift:
    """From a start to a policy."""

    distance: float
    """L2 norm of the difference of all parameters, in float32."""
    relative: float
    """That over the L2 norm of the start's parameters."""
    kl_token: Estimate
    """KL(policy || start) in nats a sampled token, by the estimator k3; the error is over questions."""
    kl_response: Estimate
    """The same, summed over a response."""


def check_start(bench: Bench, start: Path) -> None:
    """Raise DataError where a policy is none that training could have begun with."""
    _distance(bench, load_policy(start)[0], start)


def drift(bench: Bench, start: Path, trees: Sequence[RolloutTree], temperature: float) -> Drift:
    """Compare the bench's policy with that of folder ``start``, over the tokens of ``trees``, which the policy sampled
    as whole responses. Raises DataError where their weights or vocabularies have other shapes."""
    other, _ = load_policy(start)
    distance, norm = _distance(bench, other, start)
    learn = bench.backend.params
    working = working_copy(other, learn)
    working.to(bench.backend.device)  # type: ignore[arg-type]
    policy = TreePolicy(working, learn.attention).eval()
    sums, tokens, responses = [], [], []
    for tree in trees:
        kl = _kl(bench, policy, tree, temperature)
        sums.append(float(kl.sum()))
        tokens.append(len(kl))
        responses.append(sum(tree.nodes[leaf].trainable for leaf in tree.leaves))
    return Drift(distance, distance / norm, _ratio(sums, tokens), _ratio(sums, responses))


def _distance(bench: Bench, other: torch.nn.Module, start: Path) -> tuple[float, float]:
    """L2 norms of the difference and of the start's parameters."""
    ours = {name: p.detach().float().cpu() for name, p in bench.backend.model.named_parameters()}
    theirs = {name: p.detach().float().cpu() for name, p in other.named_parameters()}
    for name in sorted(ours.keys() | theirs.keys()):
        shapes = [tuple(own[name].shape) if name in own else "none" for own in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise DataError(
                f"{start}: {name} has shape {shapes[1]}, in the policy {shapes[0]}; --start names the policy that "
                "training began with"
            )
    squares = sum(float((ours[name] - p).double().square().sum()) for name, p in theirs.items())
    return math.sqrt(squares), math.sqrt(sum(float(p.double().square().sum()) for p in theirs.values()))


def _kl(bench: Bench, policy: TreePolicy, tree: RolloutTree, temperature: float) -> np.ndarray:
    """k3 = r - 1 - log r of every trained token, float64 [tokens]; r is its probability at the start over the policy's
    own."""
    masks = tuple(np.full(len(node.token_ids), node.trainable) for node in tree.nodes)
    passes = forwarded(bench, policy, tree, masks, temperature)
    differences = [np.zeros(0), *(logprobs - sampled for sampled, logprobs in passes)]
    return np.concatenate([np.expm1(difference) - difference for difference in differences])


def _ratio(sums: Sequence[float], counts: Sequence[int]) -> Estimate:
    """Sum over count, and its error over questions to first order."""
    total, count = np.array(sums), np.array(counts, np.float64)
    value = float(total.sum() / count.sum())
    if len(total) < 2:
        return Estimate(value, math.nan)
    off = total - value * count
    return Estimate(value, float(off.std(ddof=1) / math.sqrt(len(off)) / count.mean()))
