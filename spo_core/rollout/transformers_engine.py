"""Continuous batching over a Hugging Face causal model, for CPUs and small policies.

Requests live in slots of a preallocated key/value cache, one tensor for all keys and values of one shape. Every slot
holds the cache of all its tokens but the last, which is *pending*: a step feeds the pending tokens of all active slots
and samples the next ones. A child is admitted by copying its parent's cache, so a prefix is computed once; active slots
stay packed at the front.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from spo_core.attention import CAUSAL, NAME, Sees, laid_out
from spo_core.rollout.engine import Completion, Request

Place = tuple[int, int]  # which of the engine's stores, and which of the tensors in it
Stored = list[Tensor]  # one request's cache: (tensors, heads, tokens, dim) of each store


@dataclass(slots=True)
class _Slot:
    request: Request
    cached_tokens: int
    sampled: int = 0


class _SlotLayer(DynamicLayer):
    """One layer's view of the slots: writes the new token of each active slot at its own position."""

    def __init__(self, engine: TransformersEngine, layer: int) -> None:
        super().__init__()
        self.engine, self.layer = engine, layer

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        e, n = self.engine, key_states.shape[0]
        keys, values = (e.kv[store][index] for store, index in e.places[self.layer])  # (slots, heads, positions, dim)
        keys[e.rows[:n], :, e.lengths[:n]] = key_states[:, :, 0]
        values[e.rows[:n], :, e.lengths[:n]] = value_states[:, :, 0]
        return keys[:n, :, : e.width], values[:n, :, : e.width]


class _SlotLayout:
    """Masks of the slots: each active one's new token, and what is cached before it."""

    packed = False

    def __init__(self, engine: TransformersEngine, n: int) -> None:
        self.engine, self.lengths = engine, engine.lengths[:n, None]

    def mask(self, sees: Sees) -> Tensor:
        """Added to scores, (n, 1, 1, width)."""
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
        self.stop_ids = torch.tensor(sorted(stop_ids), device=self.device)
        self.places, shapes = self._cache_layout()
        self.kv = [
            torch.zeros((count, max_concurrency, heads, context_length, dim), dtype=self.dtype, device=self.device)
            for (heads, dim), count in shapes.items()
        ]
        self.rows = torch.arange(max_concurrency, device=self.device)
        self.lengths = torch.zeros(max_concurrency, dtype=torch.long, device=self.device)  # tokens in the cache
        self.width = 0  # longest active cache, the pending token included
        self._pending = torch.zeros(max_concurrency, dtype=torch.long, device=self.device)
        self._noise = torch.zeros(max_concurrency, context_length, dtype=torch.float64)
        self._tokens = np.zeros((max_concurrency, context_length), np.int32)
        self._logprobs = np.zeros((max_concurrency, context_length), np.float32)
        self._entropies = np.zeros((max_concurrency, context_length), np.float32)
        self.positions = torch.arange(context_length, device=self.device)
        self._slots: list[_Slot] = []
        self._queue: deque[Request] = deque()
        self._kept: dict[int, tuple[np.ndarray, Stored]] = {}  # request id -> tokens, cache
        self._prefixes: dict[bytes, Stored] = {}  # prompt without its last token -> cache
        self._uses: Counter[bytes] = Counter()  # queued requests that may need it

    @property
    def busy(self) -> bool:
        return bool(self._slots or self._queue)

    def submit(self, requests: Iterable[Request]) -> None:
        for request in requests:
            room = self.context_length - len(request.token_ids)
            if not 1 <= request.max_tokens <= room:
                raise ValueError(f"max_tokens {request.max_tokens} is not within 1..{room} after this prefix")
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
        """The weights are the trainer's own, and its cache is small: nothing to leave."""

    def close(self) -> None:
        self._queue.clear()
        self._slots.clear()

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        if self.model.training:  # whoever trains it sets the mode again
            self.model.eval()
        self._admit()
        n = len(self._slots)
        if n == 0:
            return []
        tokens, logprobs, entropies = self._sample(self._forward(n), n)
        return self._collect(tokens, logprobs, entropies, n)

    def _forward(self, n: int) -> Tensor:
        """Feed the pending tokens of the first n slots; logits (n, vocabulary) of what follows them."""
        lengths = self.lengths[:n]
        self.width = int(lengths.max()) + 1
        with laid_out(_SlotLayout(self, n)):
            output = self.model(
                input_ids=self._pending[:n, None],
                position_ids=lengths[:, None],
                past_key_values=Cache(layers=[_SlotLayer(self, i) for i in range(len(self.places))]),
                use_cache=True,
            )
        return output.logits[:, -1].float()

    def _sample(self, logits: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Inverse-CDF sampling: token ids, temperature-scaled log-probs and, if asked for, entropies, each (n,)."""
        logprobs = torch.log_softmax(logits / self.temperature, dim=-1)
        probs = logprobs.double().exp()
        entropies = torch.special.entr(probs).sum(-1) if self.gives_entropies else None  # before top-p
        if self.top_p < 1:
            probs = nucleus(probs, self.top_p)
        cdf = probs.cumsum(-1)
        drawn = [slot.sampled for slot in self._slots]
        uniform = self._noise[torch.arange(n), torch.tensor(drawn)].to(self.device)
        tokens = torch.searchsorted(cdf, (uniform * cdf[:, -1])[:, None], right=True)[:, 0]
        last_possible = probs.shape[-1] - 1 - (probs.flip(-1) > 0).int().argmax(-1)
        tokens = torch.minimum(tokens, last_possible)
        return tokens, logprobs.gather(-1, tokens[:, None])[:, 0], entropies

    def _collect(self, tokens: Tensor, logprobs: Tensor, entropies: Tensor | None, n: int) -> list[Completion]:
        self.lengths[:n] += 1
        self._pending[:n] = tokens
        stopped = torch.isin(tokens, self.stop_ids).tolist()
        drawn = np.fromiter((slot.sampled for slot in self._slots), np.int64, n)
        self._tokens[np.arange(n), drawn] = tokens.cpu().numpy()
        self._logprobs[np.arange(n), drawn] = logprobs.cpu().numpy()
        if entropies is not None:
            self._entropies[np.arange(n), drawn] = entropies.cpu().numpy()
        finished = []
        for index, slot in enumerate(self._slots):
            slot.sampled += 1
            if stopped[index] or slot.sampled == slot.request.max_tokens:
                finished.append(index)
        completions = []
        for index in reversed(finished):  # from the back, so that moving the last slot forward moves an open one
            completions.append(self._finish(index, stopped[index]))
        return completions[::-1]

    def _finish(self, index: int, stopped: bool) -> Completion:
        slot = self._slots[index]
        request, count = slot.request, slot.sampled
        sampled = self._tokens[index, :count].copy()
        if request.keep:
            cached = int(self.lengths[index])
            tokens = np.concatenate([request.token_ids, sampled]).astype(np.int32)
            self._kept[request.request_id] = (tokens, [store[:, index, :, :cached].clone() for store in self.kv])
        entropies = self._entropies[index, :count].copy() if self.gives_entropies else None
        logprobs = self._logprobs[index, :count].copy()
        completion = Completion(request.request_id, sampled, logprobs, stopped, entropies, slot.cached_tokens)
        last = len(self._slots) - 1
        if index != last:
            length = int(self.lengths[last])
            for store in self.kv:
                store[:, index, :, :length] = store[:, last, :, :length]
            self.lengths[index] = length
            self._pending[index] = self._pending[last]
            self._noise[index] = self._noise[last]
            for rows in (self._tokens, self._logprobs, self._entropies):
                rows[index] = rows[last]
            self._slots[index] = self._slots[last]
        self._slots.pop()
        return completion

    def _admit(self) -> None:
        count = min(len(self._queue), self.capacity - len(self._slots))
        admitted = [self._queue.popleft() for _ in range(count)]
        computed = self._prefill([r for r in admitted if r.parent is None or r.parent not in self._kept])
        for (parent, prefix), group in groupby(admitted, lambda r: (r.parent, self._prefix(r))):
            siblings = list(group)  # they get one copy of the prefix's cache each, in one go
            start, cached = len(self._slots), len(siblings[0].token_ids) - 1
            stop = start + len(siblings)
            if parent is not None and parent in self._kept:
                tokens, kv = self._kept[parent]
                if len(tokens) <= cached or not np.array_equal(tokens[:cached], siblings[0].token_ids[:cached]):
                    raise ValueError(f"request {siblings[0].request_id} does not share the tokens of {parent}")
            elif cached:
                kv = self._prefixes[prefix]
            if cached:
                for store, prefix_cache in zip(self.kv, kv, strict=True):
                    store[:, start:stop, :, :cached] = prefix_cache[:, None, :, :cached]
            self.lengths[start:stop] = cached
            self._pending[start:stop] = torch.tensor([int(r.token_ids[-1]) for r in siblings], device=self.device)
            for index, request in enumerate(siblings, start=start):
                generator = np.random.Generator(np.random.Philox(key=request.seed))
                self._noise[index, : request.max_tokens] = torch.from_numpy(generator.random(request.max_tokens))
                fresh = parent not in self._kept and prefix in computed  # the first of siblings pays for all
                self._slots.append(_Slot(request, 0 if fresh else cached))
                computed.discard(prefix)
                self._forget(prefix)

    @staticmethod
    def _prefix(request: Request) -> bytes:
        return request.token_ids[:-1].tobytes()

    def _forget(self, prefix: bytes) -> None:
        """One request less needs this prompt's cache; drop it with the last."""
        self._uses[prefix] -= 1
        if not self._uses[prefix]:
            del self._uses[prefix]
            self._prefixes.pop(prefix, None)

    def _prefill(self, requests: list[Request]) -> set[bytes]:
        """Compute the caches of prompts that have none yet, in one padded batch; these prompts."""
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
        for layer, ((keys, _), (values, _)) in zip(layers, self.places, strict=True):
            stores[keys].append(layer.keys)
            stores[values].append(layer.values)
        whole = [torch.stack(store) for store in stores]  # (members, prompts, heads, width, dim)
        for row, (key, ids) in enumerate(prompts.items()):
            self._prefixes[key] = [store[:, row, :, : len(ids)].clone() for store in whole]
        return set(prompts)

    def _cached(self, ids: Tensor) -> list[Any]:
        """Layers of the cache of (rows, width) token ids."""
        cache = Cache(layer_class_to_replicate=DynamicLayer)
        self.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
        return list(cache.layers)

    @torch.inference_mode()
    def _cache_layout(self) -> tuple[list[tuple[Place, Place]], Counter[tuple[int, int]]]:
        """Where each layer's keys and values are stored, and how many tensors of each (heads, head dim) there are."""
        self.model.eval()
        shapes: Counter[tuple[int, int]] = Counter()
        places = []
        for layer in self._cached(torch.zeros(1, 1, dtype=torch.long, device=self.device)):
            pair = []
            for tensor in (layer.keys, layer.values):
                shape = (tensor.shape[1], tensor.shape[3])
                pair.append((list(shapes).index(shape) if shape in shapes else len(shapes), shapes[shape]))
                shapes[shape] += 1
            places.append((pair[0], pair[1]))
        return places, shapes


def nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Zero all but the smallest set of tokens that reaches ``top_p``; (n, vocabulary), not renormalised."""
    ordered, order = probs.sort(dim=-1, descending=True)
    outside = ordered.cumsum(-1) - ordered >= top_p
    return probs.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), 0.0)
