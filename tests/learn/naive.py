"""The plain way: one padded sequence per segment, prompt and ancestors forwarded again for each."""

from __future__ import annotations

import numpy as np
import torch

from spo_core.learn.tree_batch import TrainedSegments


def flat_logprobs(model, items: list[TrainedSegments], temperature: float) -> tuple[torch.Tensor, int]:
    """Log-probs of the masked tokens in order of depth, tree, node; and the tokens forwarded."""
    sequences = []
    deepest = max((max(item.tree.depths) for item in items), default=0)
    for depth in range(1, deepest + 1):
        for item in items:
            for index, mask in enumerate(item.masks):
                if item.tree.depths[index] == depth and mask.any():
                    path = item.tree.path(index)
                    ids = np.concatenate([item.tree.nodes[i].token_ids for i in path])
                    start = len(ids) - len(item.tree.nodes[index].token_ids)
                    sequences.append((ids, start + np.flatnonzero(mask)))
    if not sequences:
        return torch.zeros(0), 0
    width = max(len(ids) for ids, _ in sequences)
    batch = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, (ids, _) in enumerate(sequences):
        batch[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
    logprobs = torch.log_softmax(model(input_ids=batch, use_cache=False).logits / temperature, -1)
    parts = []
    for row, (ids, positions) in enumerate(sequences):
        targets = torch.from_numpy(ids[positions].astype(np.int64))
        parts.append(logprobs[row, torch.from_numpy(positions - 1), targets])
    return torch.cat(parts), sum(len(ids) for ids, _ in sequences)
