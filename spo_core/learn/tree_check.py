"""Refuses, before training, a policy whose log-probs on packed trees differ from those of its plain forward pass."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from spo_core.errors import ConfigError
from spo_core.learn.tree_batch import TrainedSegments, TreeBatch, layout
from spo_core.learn.tree_forward import TreePolicy
from spo_core.policy.architecture import (
    attempted,
    difference,
    kind_of,
    kinds_of,
    layers_of,
    path_length,
    plain_logprobs,
    random_ids,
    recorded,
    refusal,
    refuse_positions_of_its_own,
    refuse_stretched_positions,
    tolerance,
)
from spo_core.tree import FinishReason, Node, RolloutTree

SEGMENT = 5  # tokens


def check_policy(policy: TreePolicy, context_length: int) -> None:
    """Raise ConfigError, naming the kind of layer, where log-probs on a random tree differ from a plain forward pass's.

    The policy is compared on its device and in its dtype, in training mode, on paths longer than every window below
    ``context_length``. Under ZeRO all ranks must call it.
    """
    model, use = policy.model, "be trained on trees"
    refuse_stretched_positions(model, context_length)
    refuse_positions_of_its_own(model, use)
    tree = _tree(model, path_length(model, context_length))
    masks = tuple(np.full(len(node.token_ids), node.trainable) for node in tree.nodes)
    batch = layout([TrainedSegments(tree, masks)], model.device)
    expected, failure = attempted(lambda: _plain(model, tree, batch))
    if expected is None:
        raise refusal(model, use, f"{kinds_of(model)}: {failure}")
    limit = tolerance(model, expected, lambda: _plain(model, tree, batch, own=False))

    @torch.no_grad()
    def found() -> Tensor:
        return policy(batch, 1.0)[0].cpu()

    was = policy.training
    try:
        policy.train()
        trained, failure = attempted(found)
        if trained is not None and difference(trained, expected) <= limit:
            return
        policy.eval()
        evaluated, _ = attempted(found)
        if evaluated is not None and difference(evaluated, expected) <= limit:
            raise ConfigError(f"the policy is not the same in training: set {_random(model)} to 0 in its config.json")
        if trained is None:
            raise refusal(model, use, f"{kinds_of(model)}: {failure}")
        off = f"log-probs on trees are off those of a plain forward pass by {difference(trained, expected):.2g}"
        raise refusal(model, use, f"{_first_different(policy, tree, batch, limit)}: {off} of their spread")
    finally:
        policy.train(was)


def _tree(model: PreTrainedModel, longest: int) -> RolloutTree:
    """Two children of a prompt with two children each; paths of ``longest`` tokens, the last some tokens shorter."""
    rng = np.random.default_rng(0)
    sizes = [min(SEGMENT, max(1, (longest - 1) // 3))] * 2
    nodes = [Node.prompt(random_ids(model, max(1, longest - sum(sizes)), rng))]

    def add(parent: int, size: int, finish: FinishReason) -> int:
        nodes.append(Node.sampled(parent, random_ids(model, size, rng), -np.ones(size, np.float32), finish))
        return len(nodes) - 1

    for first in (sizes[0], max(1, sizes[0] - 2)):
        child = add(0, first, FinishReason.SEGMENT)
        for last in (sizes[1], max(1, sizes[1] - 1)):
            add(child, last, FinishReason.STOP)
    return RolloutTree("check", tuple(nodes))


def _plain(model: PreTrainedModel, tree: RolloutTree, batch: TreeBatch, *, own: bool = True) -> Tensor:
    """Log-probs of the batch's trained tokens by one plain forward pass a leaf."""
    by_node: dict[int, Tensor] = {}
    for leaf in tree.leaves:
        path = tree.path(leaf)
        prompt, *sizes = (len(tree.nodes[i].token_ids) for i in path)
        logprobs = plain_logprobs(model, np.concatenate([tree.nodes[i].token_ids for i in path]), own=own)
        by_node |= dict(zip(path[1:], logprobs[prompt - 1 :].split(sizes), strict=True))
    return torch.cat([by_node[node] for _, node in batch.order])


@torch.no_grad()
def _first_different(policy: TreePolicy, tree: RolloutTree, batch: TreeBatch, limit: float) -> str:
    """Name the first layer whose output differs on the last path; the first path lies in the packed row just as in a
    plain sequence, so it would not show a difference."""
    model = policy.model
    layers, path = layers_of(model), tree.path(tree.leaves[-1])
    counts = [len(tree.nodes[node].token_ids) for _, node in batch.order]
    sources = dict(zip((node for _, node in batch.order), batch.sources.cpu().split(counts), strict=True))
    packed = torch.cat([sources[node] for node in path[1:]])
    with recorded(layers) as found:
        policy.hidden(batch)
    with recorded(layers) as expected:
        plain_logprobs(model, np.concatenate([tree.nodes[i].token_ids for i in path]))
    for index, (a, b) in enumerate(zip(found, expected, strict=False)):
        if difference(a[packed], b[-len(packed) - 1 : -1]) > limit:
            return f"its layers of kind {kind_of(model.config, layers, index)}"
    return "what follows its layers"


def _random(model: PreTrainedModel) -> str:
    """Keys of the configuration that make training random."""
    values = vars(model.config.get_text_config()).items()
    keys = [k for k, v in values if any(w in k for w in ("drop", "jitter", "noise")) and isinstance(v, float) and v]
    return ", ".join(keys) or "dropout and noise"
