"""Stop strings: a response ends with the token that completes one of them, whatever the engine."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from spo_core.rollout.decoding import make_decode
from spo_core.rollout.token_texts import UNFINISHED, token_texts

MARGIN = 8  # characters; more than a decoder drops at its beginning or writes for an unfinished character


class Stop(Protocol):
    def __call__(self, token_ids: Sequence[int] | np.ndarray, known: int = 0) -> int | None:
        """Count the tokens to the end of the first stop string; None without one. The first ``known`` tokens hold
        none."""
        ...


def stop_at(tokenizer: Any, strings: Sequence[str]) -> Stop | None:
    """Make the function that finds where a response ends that holds one of ``strings``; None where there are none.

    Engines know token ids only, so a response is cut when it, or a segment of it, is back: a string may begin in one
    segment and end in the next, and what was sampled behind it is thrown away. The tokens of the string stay, since
    they were sampled and ended the response. Decoded are the new tokens and so many before them as a string can reach.
    """
    if not strings:
        return None
    longest = max(map(len, strings))
    vocabulary = tokenizer.get_vocab()
    byte_tokens = {vocabulary[name] for name in (f"<0x{byte:02X}>" for byte in range(256)) if name in vocabulary}
    special = set(tokenizer.all_special_ids)
    decode = make_decode(tokenizer)

    def window(ids: np.ndarray, known: int) -> tuple[int, int]:
        """Find a token from which decoding gives the end of the whole text, and the first character there at which a
        string may begin that the known tokens do not hold.

        Bytes of UTF-8 in front of a whole character never change it; but bytes that are tokens of their own are decoded
        as one run, all or none, so none begins inside.
        """
        size = longest
        while size < known:
            text = decode(ids[known - size : known])
            first = next((i for i in ids[known - size : known].tolist() if i not in special), None)
            if len(text) >= longest + MARGIN and text[0] != UNFINISHED and first not in byte_tokens:
                return known - size, len(text) - longest - MARGIN // 2
            size *= 2
        return 0, 0

    def stop(token_ids: Sequence[int] | np.ndarray, known: int = 0) -> int | None:
        ids = np.asarray(token_ids, np.int64)
        begin, place = window(ids, known)

        def held(text: str) -> bool:
            return any(text.find(string, place) >= 0 for string in strings)

        text = decode(ids[begin:])
        if not held(text):
            return None
        if byte_tokens and UNFINISHED in text:  # a later byte may make a run of bytes undecodable
            pieces = token_texts(tokenizer, ids[begin:])
            whole = "".join(pieces)
            stops = [at + len(string) for string in strings if (at := whole.find(string, place)) >= 0]
            return begin + int(np.searchsorted(np.cumsum([len(p) for p in pieces]), min(stops))) + 1 if stops else None
        inside = byte_tokens and byte_tokens | special  # no end of a run of bytes stands before these
        ends = [n for n in range(known + 1, len(ids)) if int(ids[n]) not in inside] + [len(ids)]
        at = bisect_left(ends, True, key=lambda n: held(decode(ids[begin:n])))
        for count in range(ends[at - 1] + 1 if at else known + 1, len(ids)):
            text = decode(ids[begin:count])
            if held(text) and not text.endswith(UNFINISHED):  # otherwise it begins a character, which
                return count  # another token completes
        return len(ids)

    return stop
