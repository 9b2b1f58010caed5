"""What an engine does: token ids in, token ids out, finished requests as they finish."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, eq=False, slots=True)
class Request:
    """Sample up to ``max_tokens`` tokens after ``token_ids`` (int32 [n]: the prompt and all sampled so far).

    ``parent`` may name a finished request with ``keep=True`` whose tokens begin with this prefix or are its beginning;
    an engine may reuse its key/value cache. ``keep`` says that requests with this one as parent will follow.
    """

    request_id: int
    token_ids: np.ndarray
    max_tokens: int
    seed: int
    parent: int | None = None
    keep: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Completion:
    """``token_ids`` int32 [n], ``logprobs`` float32 [n] (temperature-scaled, full vocabulary); whether it stopped.

    ``entropies`` float32 [n], in nats, are of the same distributions; None from an engine that was not asked for them.
    """

    request_id: int
    token_ids: np.ndarray
    logprobs: np.ndarray
    stopped: bool
    entropies: np.ndarray | None = None


class Engine(Protocol):
    """Continuous batching behind two calls; requests may be submitted between any two steps.

    ``gives_entropies``: whether completions come with entropies; an engine that can give them is asked when it is made.
    """

    gives_entropies: bool

    def submit(self, requests: Iterable[Request]) -> None: ...

    def step(self) -> list[Completion]:
        """Advance; the requests that finished meanwhile. Empty does not mean idle: see ``busy``."""
        ...

    @property
    def busy(self) -> bool: ...

    def release(self, request_id: int) -> None:
        """No further request will have this one as parent."""
        ...

    def policy_changed(self) -> None:
        """The weights are new: nothing cached under the old ones may be used."""
        ...
