"""The text that each sampled token adds, so that a text may be looked for without tokenising anything again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are no character yet


def token_texts(tokenizer: Any, token_ids: Iterable[int]) -> list[str]:
    """Texts that concatenate to the decoded tokens, one a token; special tokens are empty.

    A character whose bytes span tokens belongs to the token that completes it, and the others are empty. Each token is
    decoded behind the one before it, not alone, because some decoders strip a leading space; the window begins at the
    last token that completed a character, so the cost is linear in the number of tokens.
    """
    ids = [int(i) for i in token_ids]
    pieces: list[str] = []
    begin = done = 0  # the window, and its tokens whose text is already given out
    for stop in range(1, len(ids) + 1):
        before = tokenizer.decode(ids[begin:done], skip_special_tokens=True)
        text = tokenizer.decode(ids[begin:stop], skip_special_tokens=True)
        if text.endswith(UNFINISHED) and stop < len(ids):
            pieces.append("")
            continue
        pieces.append(text[len(before) :])
        begin, done = done, stop
    return pieces
