"""Continuous batching over a Hugging Face causal model, for CPUs and small policies.

Requests live in rows of a preallocated key/value cache, one tensor for all keys and values of one shape. Every row
holds the cache of all its tokens but the last, which is *pending*: a step feeds the pending tokens of all rows and
samples the next ones. Requests with equal tokens share a row for as long as they sample the same, so what they have in
common is computed once; where they part, the cache is copied. A child is admitted by copying its parent's cache. Active
rows and requests stay packed at the front.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from spo_core.policy.attention import CAUSAL, NAME, Sees, laid_out
from spo_core.rollout.drawing import draw
from spo_core.rollout.engine import Completion, Request

StoreIndex = tuple[int, int]  # which of the engine's stores, and which of the tensors in it
Stored = list[Tensor]  # one request's cache: (tensors, heads, tokens, dim) of each store


@dataclass(slots=True)
class _Open:
    request: Request
    cached_tokens: int
    began: float
    sampled: int = 0


class _RowLayer(DynamicLayer):
    """One layer's view of the rows: writes the new token of each active row at its own position."""

    def __init__(self, engine: TransformersEngine, layer: int) -> None:
        super().__init__()
        self.engine, self.layer = engine, layer

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        e, n = self.engine, key_states.shape[0]
        keys, values = (e.kv[store][index] for store, index in e.stored_at[self.layer])  # (rows, heads, positions, dim)
        keys[e.rows[:n], :, e.lengths[:n]] = key_states[:, :, 0]
        values[e.rows[:n], :, e.lengths[:n]] = value_states[:, :, 0]
        return keys[:n, :, : e.width], values[:n, :, : e.width]


class _RowLayout:
    """Masks of the rows: each active one's new token, and what is cached before it."""

    packed = False

    def __init__(self, engine: TransformersEngine, n: int) -> None:
        self.engine, self.lengths = engine, engine.lengths[:n, None]

    def mask(self, sees: Sees) -> Tensor:
        """Make the mask that is added to scores, (n, 1, 1, width)."""
        positions = self.engine.positions[None, : self.engine.width]
        visible = positions <= self.lengths
        if sees is not CAUSAL:
            zero = torch.zeros_like(self.lengths)
            visible &= sees(zero, zero, self.lengths, positions)
        bias = torch.zeros(visible.shape, dtype=self.engine.dtype, device=visible.device)
        return bias.masked_fill_(~visible, float("-inf"))[:, None, None]


class TransformersEngine:
    """Implements ``rollout.engine.Engine``; shares the module it is given with whoever trains it.

    Sampling noise of a request is one uniform number a token, drawn from its own seed, so it does not depend on what
    else is being decoded.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        stop_ids: Iterable[int],
        context_length: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_concurrency: int = 256,
        entropies: bool = False,
    ) -> None:
        model.set_attn_implementation(NAME)
        self.model, self.temperature, self.top_p = model, temperature, top_p
        self.device, self.dtype = model.device, model.dtype
        self.context_length, self.capacity = context_length, max_concurrency
        self.gives_entropies = entropies
        self.version: int | None = None
        self.restarts = 0
        self.stop_ids = np.array(sorted(stop_ids), np.int64)
        self.stored_at, shapes = self._cache_layout()
        self.kv = [
            torch.zeros((count, max_concurrency, heads, context_length, dim), dtype=self.dtype, device=self.device)
            for (heads, dim), count in shapes.items()
        ]
        self.rows = torch.arange(max_concurrency, device=self.device)
        self.lengths = torch.zeros(max_concurrency, dtype=torch.long, device=self.device)  # tokens in the cache
        self.width = 0  # longest active cache, the pending token included
        self._pending = torch.zeros(max_concurrency, dtype=torch.long, device=self.device)
        self._row_of = np.zeros(max_concurrency, np.int64)  # of each open request; below, one entry a request
        self._noise = np.zeros((max_concurrency, context_length))
        self._tokens = np.zeros((max_concurrency, context_length), np.int32)
        self._logprobs = np.zeros((max_concurrency, context_length), np.float32)
        self._entropies = np.zeros((max_concurrency, context_length), np.float32)
        self.positions = torch.arange(context_length, device=self.device)
        self._active = 0  # number of rows in use
        self._open: list[_Open] = []
        self._queue: deque[Request] = deque()
        self._kept: dict[int, tuple[np.ndarray, Stored]] = {}  # request id -> tokens, cache
        self._prefixes: dict[bytes, Stored] = {}  # prompt without its last token -> cache
        self._uses: Counter[bytes] = Counter()  # prompt -> queued requests that may need its cache

    @property
    def busy(self) -> bool:
        return bool(self._open or self._queue)

    def submit(self, requests: Iterable[Request]) -> None:
        for request in requests:
            request.check_room(self.context_length)
            self._queue.append(request)
            self._uses[self._prefix(request)] += 1

    def release(self, request_id: int) -> None:
        self._kept.pop(request_id, None)

    def policy_changed(self, version: int) -> None:
        if self.busy:
            raise RuntimeError("the policy changed while requests were being decoded")
        self._kept.clear()
        self._prefixes.clear()
        self.version = version

    def sleep(self) -> None:
        """Do nothing: the weights are the trainer's own, and the cache is small."""

    def close(self) -> None:
        self._queue.clear()
        self._open.clear()
        self._active = 0

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        if self.model.training:  # the trainer sets its mode itself
            self.model.eval()
        self._admit()
        if not self._open:
            return []
        logits = self._forward(self._active)
        count = len(self._open)
        noise = self._noise[np.arange(count), [item.sampled for item in self._open]]
        return self._collect(
            *draw(logits / self.temperature, self._row_of[:count], noise, self.top_p, self.gives_entropies)
        )

    def _forward(self, n: int) -> Tensor:
        """Feed the pending tokens of the first n rows; returns the logits (n, vocabulary) of what follows them."""
        lengths = self.lengths[:n]
        self.width = int(lengths.max()) + 1
        with laid_out(_RowLayout(self, n)):
            output = self.model(
                input_ids=self._pending[:n, None],
                position_ids=lengths[:, None],
                past_key_values=Cache(layers=[_RowLayer(self, i) for i in range(len(self.stored_at))]),
                use_cache=True,
            )
        return output.logits[:, -1].float()

    def _collect(self, tokens: np.ndarray, logprobs: np.ndarray, entropies: np.ndarray | None) -> list[Completion]:
        self.lengths[: self._active] += 1
        requests = np.arange(len(self._open))
        drawn = np.array([item.sampled for item in self._open])
        self._tokens[requests, drawn] = tokens
        self._logprobs[requests, drawn] = logprobs
        if entropies is not None:
            self._entropies[requests, drawn] = entropies
        stopped = np.isin(tokens, self.stop_ids).tolist()
        finished = []
        for index, item in enumerate(self._open):
            item.sampled += 1
            if stopped[index] or item.sampled == item.request.max_tokens:
                finished.append(index)
        completions = []
        for index in reversed(finished):  # from the back, so that moving the last one forward moves an open one
            completions.append(self._finish(index, stopped[index]))
        if finished or self._active < len(self._open):
            self._part()
        else:  # every row still has one request
            self._pending[self._indices(self._row_of[: len(tokens)])] = self._indices(tokens)
        return completions[::-1]

    def _finish(self, index: int, stopped: bool) -> Completion:
        """Take a request out; the last one takes its place."""
        item = self._open[index]
        request, count = item.request, item.sampled
        sampled = self._tokens[index, :count].copy()
        if request.keep:
            row = self._row_of[index]
            cached = int(self.lengths[row])
            tokens = np.concatenate([request.token_ids, sampled]).astype(np.int32)
            self._kept[request.request_id] = (tokens, [store[:, row, :, :cached].clone() for store in self.kv])
        entropies = self._entropies[index, :count].copy() if self.gives_entropies else None
        logprobs = self._logprobs[index, :count].copy()
        completion = Completion(
            request.request_id, sampled, logprobs, stopped, entropies, item.cached_tokens, item.began
        )
        last = len(self._open) - 1
        if index != last:
            for values in (self._row_of, self._noise, self._tokens, self._logprobs, self._entropies):
                values[index] = values[last]
            self._open[index] = self._open[last]
        self._open.pop()
        return completion

    def _part(self) -> None:
        """Give every distinct continuation of a row a row of its own, drop rows without requests, and close the
        gaps."""
        count = len(self._open)
        if not count:
            self._active = 0
            return
        newest = self._tokens[np.arange(count), [item.sampled - 1 for item in self._open]].astype(np.int64)
        parted, first, where = np.unique(self._row_of[:count] << 32 | newest, return_index=True, return_inverse=True)
        self._active = len(parted)
        source = parted >> 32  # the rows so far, ascending; the first continuation of each stays where possible
        stays = np.append(True, source[1:] != source[:-1]) & (source < self._active)
        place = np.where(stays, source, -1)
        place[~stays] = np.setdiff1d(np.arange(self._active), source[stays])
        if not stays.all():
            moved, free = self._indices(source[~stays]), self._indices(place[~stays])
            longest = int(self.lengths[moved].max())
            for store in self.kv:
                store[:, free, :, :longest] = store[:, moved, :, :longest]
            self.lengths[free] = self.lengths[moved]
        self._pending[self._indices(place)] = self._indices(newest[first])
        self._row_of[:count] = place[where]

    def _indices(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def _admit(self) -> None:
        count, began = min(len(self._queue), self.capacity - len(self._open)), time.perf_counter()
        admitted = [self._queue.popleft() for _ in range(count)]
        computed = self._prefill([r for r in admitted if r.parent is None or r.parent not in self._kept])
        equal: dict[bytes, list[Request]] = {}
        for request in admitted:
            equal.setdefault(request.token_ids.tobytes(), []).append(request)
        for group in equal.values():  # equal requests share a row
            row, ids = self._active, group[0].token_ids
            cached = len(ids) - 1
            if cached:
                for store, prefix_cache in zip(self.kv, self._cache(group[0]), strict=True):
                    store[:, row, :, :cached] = prefix_cache[:, :, :cached]
            self.lengths[row] = cached
            self._pending[row] = int(ids[-1])
            self._active += 1
            for request in group:
                index, prefix = len(self._open), self._prefix(request)
                generator = np.random.Generator(np.random.Philox(key=request.seed))
                self._noise[index, : request.max_tokens] = generator.random(request.max_tokens)
                self._row_of[index] = row
                fresh = request.parent not in self._kept and prefix in computed  # the first of equals counts
                self._open.append(_Open(request, 0 if fresh else cached, began))
                computed.discard(prefix)
                self._forget(prefix)

    def _cache(self, request: Request) -> Stored:
        """Find the stored KV cache that the request continues: its parent's, else its prefix's."""
        if request.parent is None or request.parent not in self._kept:
            return self._prefixes[self._prefix(request)]
        tokens, kv = self._kept[request.parent]
        cached = len(request.token_ids) - 1
        if len(tokens) <= cached or not np.array_equal(tokens[:cached], request.token_ids[:cached]):
            raise ValueError(f"request {request.request_id} does not share the tokens of {request.parent}")
        return kv

    @staticmethod
    def _prefix(request: Request) -> bytes:
        return request.token_ids[:-1].tobytes()

    def _forget(self, prefix: bytes) -> None:
        """Count one request less that needs this prompt's cache; drop the cache after the last."""
        self._uses[prefix] -= 1
        if not self._uses[prefix]:
            del self._uses[prefix]
            self._prefixes.pop(prefix, None)

    def _prefill(self, requests: list[Request]) -> set[bytes]:
        """Compute the caches of prompts that have none yet, in one padded batch; returns these prompts."""
        prompts = {self._prefix(r): r.token_ids[:-1] for r in requests if len(r.token_ids) > 1}
        prompts = {key: ids for key, ids in prompts.items() if key not in self._prefixes}
        if not prompts:
            return set()
        width = max(len(ids) for ids in prompts.values())
        batch = torch.zeros(len(prompts), width, dtype=torch.long, device=self.device)
        for row, ids in enumerate(prompts.values()):
            batch[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        layers = self._cached(batch)  # right-padded and causal: padding is never seen
        stores: list[list[Tensor]] = [[] for _ in self.kv]
        for layer, ((keys, _), (values, _)) in zip(layers, self.stored_at, strict=True):
            stores[keys].append(layer.keys)
            stores[values].append(layer.values)
        whole = [torch.stack(store) for store in stores]  # (members, prompts, heads, width, dim)
        for row, (key, ids) in enumerate(prompts.items()):
            self._prefixes[key] = [store[:, row, :, : len(ids)].clone() for store in whole]
        return set(prompts)

    def _cached(self, ids: Tensor) -> list[Any]:
        """Compute the cache of token ids (rows, width); returns its layers."""
        cache = Cache(layer_class_to_replicate=DynamicLayer)
        self.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
        return list(cache.layers)

    @torch.inference_mode()
    def _cache_layout(self) -> tuple[list[tuple[StoreIndex, StoreIndex]], Counter[tuple[int, int]]]:
        """Choose where each layer's keys and values are stored, and count the tensors of each (heads, head dim)."""
        self.model.eval()
        shapes: Counter[tuple[int, int]] = Counter()
        stored_at = []
        for layer in self._cached(torch.zeros(1, 1, dtype=torch.long, device=self.device)):
            pair = []
            for tensor in (layer.keys, layer.values):
                shape = (tensor.shape[1], tensor.shape[3])
                pair.append((list(shapes).index(shape) if shape in shapes else len(shapes), shapes[shape]))
                shapes[shape] += 1
            stored_at.append((pair[0], pair[1]))
        return stored_at, shapes
