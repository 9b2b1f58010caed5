"""Stop strings: a response ends with the token that completes one of them, whatever the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from spo_core.rollout.pieces import token_pieces

Stop = Callable[[Iterable[int]], int | None]  # token ids of a response -> how many of them it has, None for all


def stop_at(tokenizer: Any, strings: Sequence[str]) -> Stop | None:
    """Where a response ends that holds one of ``strings``; None where there are none.

    Engines know token ids only, so a response is cut when it, or a segment of it, is back: a string may begin in one
    segment and end in the next, and what was sampled behind it is thrown away. The tokens of the string stay, since
    they were sampled and ended the response.
    """
    if not strings:
        return None

    def stop(token_ids: Iterable[int]) -> int | None:
        ids = [int(i) for i in token_ids]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        if not any(string in text for string in strings):
            return None
        pieces = token_pieces(tokenizer, ids)
        whole = "".join(pieces)
        end = min((whole.index(string) + len(string) for string in strings if string in whole), default=None)
        if end is None:
            return None
        lengths = np.cumsum([len(piece) for piece in pieces])
        return int(np.searchsorted(lengths, end)) + 1

    return stop
