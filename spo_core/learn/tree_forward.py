"""Log-probs of all trained tokens of trees, each shared prefix forwarded once.

Level by level: all segments of one depth are one batch over their parents' key/value cache, gathered with gradients.
The result equals one padded sequence per segment in value and gradient; tests/learn holds it to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from spo_core.tree import RolloutTree

CHUNK = 8192  # positions projected to the vocabulary at once


@dataclass(frozen=True, eq=False, slots=True)
class TrainedSegments:
    """A tree and, per node, a bool mask [tokens] of the tokens whose log-prob is wanted."""

    tree: RolloutTree
    masks: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False, slots=True)
class _Level:
    """Segments of one depth as a batch; the hidden state of row r, column c has flat index start + r * width + c."""

    input_ids: Tensor  # (rows, width)
    position_ids: Tensor  # (rows, width)
    valid: Tensor  # (rows, width) bool
    parent_rows: Tensor  # (rows,) in the level above


@dataclass(frozen=True, eq=False, slots=True)
class TreeBatch:
    """Trees laid out level by level. ``sources``/``targets`` [trained tokens]: flat hidden index and token id.

    ``order`` names the (item, node) pairs whose trained tokens follow one another in them.
    """

    levels: tuple[_Level, ...]
    sources: Tensor
    targets: Tensor
    order: tuple[tuple[int, int], ...]
    forwarded_tokens: int


class _PathCache(DynamicLayer):
    """One layer's cache of one level: the parents' path, gathered, then this level's own keys and values."""

    def __init__(self, path: tuple[Tensor, Tensor] | None) -> None:
        super().__init__()
        self.path = path
        self.filled: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if self.path is not None:
            key_states = torch.cat([self.path[0], key_states], dim=2)
            value_states = torch.cat([self.path[1], value_states], dim=2)
        self.filled = (key_states, value_states)
        return key_states, value_states


def layout(items: Sequence[TrainedSegments], device: torch.device | str = "cpu") -> TreeBatch:
    """Lay out the nodes that are trained, and their ancestors; nothing else is forwarded.

    The last token of a segment without forwarded children predicts nothing and is left out.
    """
    by_depth: list[list[tuple[int, int]]] = []
    needed_children: list[np.ndarray] = []
    for t, item in enumerate(items):
        needed = np.array([bool(mask.any()) for mask in item.masks])
        below = np.zeros(len(needed), bool)
        for index in range(len(needed) - 1, 0, -1):
            if needed[index]:
                below[item.tree.nodes[index].parent] = True
                needed[item.tree.nodes[index].parent] = True
        needed_children.append(below)
        for index in np.flatnonzero(needed):
            depth = item.tree.depths[index]
            while len(by_depth) <= depth:
                by_depth.append([])
            by_depth[depth].append((t, int(index)))

    levels: list[_Level] = []
    row_of: dict[tuple[int, int], int] = {}
    path_length: dict[tuple[int, int], int] = {}
    hidden_of: dict[tuple[int, int], tuple[int, int]] = {}  # node -> flat index of its first and last forwarded token
    sources: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    order: list[tuple[int, int]] = []
    start = forwarded = 0
    for depth, nodes in enumerate(by_depth):
        rows: list[tuple[tuple[int, int], np.ndarray, int, int]] = []
        for t, index in nodes:
            node = items[t].tree.nodes[index]
            ids = node.token_ids if needed_children[t][index] else node.token_ids[:-1]
            before = path_length[t, node.parent] if depth else 0
            path_length[t, index] = before + len(ids)
            if len(ids):
                rows.append(((t, index), ids, before, row_of[t, node.parent] if depth else 0))
        width = max((len(ids) for _, ids, _, _ in rows), default=0)
        input_ids = np.zeros((len(rows), width), np.int64)
        position_ids = np.zeros((len(rows), width), np.int64)
        valid = np.zeros((len(rows), width), bool)
        for r, (key, ids, before, _) in enumerate(rows):
            input_ids[r, : len(ids)] = ids
            position_ids[r] = before + np.arange(width)
            valid[r, : len(ids)] = True
            row_of[key] = r
            hidden_of[key] = (start + r * width, start + r * width + len(ids) - 1)
        for t, index in nodes:
            mask = np.flatnonzero(items[t].masks[index])
            if depth == 0 or not len(mask):
                continue
            node = items[t].tree.nodes[index]
            first = hidden_of[t, index][0] if (t, index) in hidden_of else 0
            before_first = hidden_of[t, node.parent][1]
            sources.append(np.where(mask == 0, before_first, first + mask - 1))
            targets.append(node.token_ids[mask].astype(np.int64))
            order.append((t, index))
        if rows:
            parent_rows = [row for _, _, _, row in rows]
            arrays = (input_ids, position_ids, valid, np.asarray(parent_rows, np.int64))
            levels.append(_Level(*(torch.from_numpy(a).to(device) for a in arrays)))
            start += len(rows) * width
            forwarded += int(valid.sum())
    empty = np.zeros(0, np.int64)
    return TreeBatch(
        tuple(levels),
        torch.from_numpy(np.concatenate(sources) if sources else empty).to(device),
        torch.from_numpy(np.concatenate(targets) if targets else empty).to(device),
        tuple(order),
        forwarded,
    )


def trained_logprobs(model: PreTrainedModel, batch: TreeBatch, temperature: float) -> Tensor:
    """Log-probs of the trained tokens under logits / temperature; float32 [trained tokens], in layout order."""
    hidden = _hidden(model, batch)
    head = model.get_output_embeddings()
    parts = []
    for sources, targets in zip(batch.sources.split(CHUNK), batch.targets.split(CHUNK), strict=True):
        logits = head(hidden[sources]).float() / temperature
        parts.append(logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1))
    return torch.cat(parts) if parts else hidden.new_zeros(0)


def _hidden(model: PreTrainedModel, batch: TreeBatch) -> Tensor:
    """Last hidden states of all levels, flattened; (sum of rows * width, hidden size)."""
    layers = model.config.num_hidden_layers
    outputs: list[Tensor] = []
    paths: list[tuple[Tensor, Tensor] | None] = [None] * layers
    path_valid: Tensor | None = None
    for level in batch.levels:
        width = level.input_ids.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=level.valid.device).tril()
        own = causal[None].expand(len(level.valid), -1, -1)
        if path_valid is None:
            visible, known = own, level.valid
        else:
            gathered = path_valid.index_select(0, level.parent_rows)
            paths = [_gather(path, level.parent_rows) for path in paths]
            visible = torch.cat([gathered[:, None].expand(-1, width, -1), own], dim=2)
            known = torch.cat([gathered, level.valid], dim=1)
        caches = [_PathCache(path) for path in paths]
        output = model.base_model(
            input_ids=level.input_ids,
            position_ids=level.position_ids,
            attention_mask=visible[:, None],
            past_key_values=Cache(layers=list(caches)),
            use_cache=True,
        )
        outputs.append(output.last_hidden_state.flatten(0, 1))
        paths = [cache.filled for cache in caches]
        path_valid = known
    return (
        torch.cat(outputs) if outputs else model.get_output_embeddings().weight.new_zeros(0, model.config.hidden_size)
    )


def _gather(path: tuple[Tensor, Tensor] | None, rows: Tensor) -> tuple[Tensor, Tensor] | None:
    return None if path is None else (path[0].index_select(0, rows), path[1].index_select(0, rows))
