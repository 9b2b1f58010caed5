"""The protocol of engines: token ids in, token ids out, requests returned as they finish."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np


@dataclass(frozen=True, eq=False, slots=True)
class Request:
    """Sample up to ``max_tokens`` tokens after ``token_ids`` (int32 [n]: the prompt and all sampled so far).

    ``parent`` may name a finished request with ``keep=True`` whose tokens begin with this prefix or are its beginning;
    an engine may reuse its key/value cache. ``keep`` says that requests with this one as parent will follow. Requests
    of one ``tree`` share prefixes, so replicas keep them together. ``prover``: sampled by the prover (``prover``), not
    the policy.
    """

    request_id: int
    token_ids: np.ndarray
    max_tokens: int
    seed: int
    parent: int | None = None
    keep: bool = False
    tree: str = ""
    prover: bool = False

    def check_room(self, context_length: int) -> None:
        """Raise ValueError where the context has no room for the request."""
        room = context_length - len(self.token_ids)
        if not 1 <= self.max_tokens <= room:
            raise ValueError(f"max_tokens {self.max_tokens} is not within 1..{room} after this prefix")


@dataclass(frozen=True, eq=False, slots=True)
class Completion:
    """``token_ids`` int32 [n], ``logprobs`` float32 [n] (temperature-scaled, full vocabulary); whether it stopped.

    ``entropies`` float32 [n], in nats, are of the same distributions; None from an engine that was not asked for them.
    ``cached_tokens`` of the request's prefix were not computed again. ``began``: when the engine took the request up,
    by ``time.perf_counter``; None from an engine that does not know.
    """

    request_id: int
    token_ids: np.ndarray
    logprobs: np.ndarray
    stopped: bool
    entropies: np.ndarray | None = None
    cached_tokens: int = 0
    began: float | None = None

    def cut(self, count: int) -> Completion:
        """Keep the first ``count`` tokens, as if the completion had stopped there."""
        entropies = None if self.entropies is None else self.entropies[:count]
        return replace(
            self, token_ids=self.token_ids[:count], logprobs=self.logprobs[:count], stopped=True, entropies=entropies
        )


class Engine(Protocol):
    """Continuous batching behind two calls; requests may be submitted between any two steps.

    An engine serves nothing before the first ``policy_changed``, which names the version of the policy it serves from
    then on. A request that fails is tried again with the same seed, and an engine that dies is started again once
    between two versions; whoever uses it notices neither. On the second death ``step`` raises EngineError.

    ``gives_entropies``: whether completions come with entropies; an engine that can give them is asked when it is made.
    ``version``: policy version served; None before the first ``policy_changed`` and while the engine sleeps.
    ``restarts``: how often it was started again, in all.
    """

    gives_entropies: bool
    version: int | None
    restarts: int

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests. Raises ValueError for one that the context has no room for."""
        ...

    def step(self) -> list[Completion]:
        """Advance; returns the requests that finished meanwhile. An empty list does not mean idle: see ``busy``."""
        ...

    @property
    def busy(self) -> bool: ...

    def release(self, request_id: int) -> None:
        """Declare that no further request will have this one as parent."""
        ...

    def policy_changed(self, version: int) -> None:
        """Serve the trainer's present weights; nothing cached under other ones may be used. Wakes a sleeping engine.

        Raises RuntimeError while requests are under way.
        """
        ...

    def sleep(self) -> None:
        """Leave the device's memory to the trainer until ``policy_changed``."""
        ...

    def close(self) -> None:
        """End every process and free all memory of the engine; it serves nothing afterwards."""
        ...


def finish_all(engine: Engine) -> dict[int, Completion]:
    """Step until the engine has no open requests; returns what finished, by request id."""
    done: dict[int, Completion] = {}
    while engine.busy:
        done |= {completion.request_id: completion for completion in engine.step()}
    return done
