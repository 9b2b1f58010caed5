"""Finds where a sampled completion ends: at its first stop token or stop string, as in training."""

from __future__ import annotations

from typing import Any

from spo_core.rollout.stops import stop_at


class Endings:
    """Finds completions' ends for a policy and a prompt template; ``tokenizer`` is the policy's."""

    def __init__(self, tokenizer: Any, stop_ids: tuple[int, ...], strings: tuple[str, ...]) -> None:
        self.stop_ids, self.strings = frozenset(stop_ids), strings
        self._stop = stop_at(tokenizer, strings)

    def until(self, ids: list[int]) -> list[int]:
        """Token ids up to the completion's end, its stop token included; all where it does not end."""
        own = ids[: next((i + 1 for i, token in enumerate(ids) if token in self.stop_ids), len(ids))]
        return own[: self._stop(own)] if self._stop else own

    def ended(self, ids: list[int]) -> bool:
        """Whether a completion, not empty, ended by itself."""
        return ids[-1] in self.stop_ids or (self._stop is not None and self._stop(ids) is not None)
