"""The text of sampled tokens, joined from the bytes of each one where a tokenizer's own decoder does just that.

A call of the tokenizer costs some 2 us a token, and an iteration of the published size decodes 14 million tokens
twice: to look for stop strings, and to grade.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast

Decode = Callable[[np.ndarray], str]  # token ids, int [n] -> their text without special tokens

SENTENCEPIECE = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


@lru_cache(maxsize=4)
def make_decode(tokenizer: Any) -> Decode:
    """``tokenizer.decode(ids, skip_special_tokens=True)`` as a function of an array; the same texts, in less time."""

    def whole(ids: np.ndarray) -> str:
        return str(tokenizer.decode(ids.tolist(), skip_special_tokens=True))

    decoder = _decoder(tokenizer)
    kind, parts = decoder.get("type"), decoder.get("decoders")
    piece: Callable[[str], bytes | None]
    if kind == "ByteLevel":
        piece = _byte_level_piece
    elif kind == "Fuse":
        piece = str.encode
    elif parts in (SENTENCEPIECE, [*SENTENCEPIECE, STRIP]):
        piece = _sentencepiece_piece
    else:
        return whole
    stripped = parts == [*SENTENCEPIECE, STRIP]
    pieces = _pieces(tokenizer.backend_tokenizer, piece)

    def joined(ids: np.ndarray) -> str:
        try:
            text = b"".join(pieces[ids].tolist()).decode(errors="replace")
        except (TypeError, IndexError):  # None (the text depends on other tokens), or an id beyond the vocabulary
            return whole(ids)
        return text.removeprefix(" ") if stripped else text

    every = np.flatnonzero([own is not None for own in pieces])
    return joined if joined(every) == whole(every) else whole


def _decoder(tokenizer: Any) -> dict[str, Any]:
    """Settings of the tokenizer's decoder; {} where the tokenizer's class does more than call the decoder."""
    plain, kind = PreTrainedTokenizerFast, type(tokenizer)
    if not isinstance(tokenizer, plain) or kind.decode is not plain.decode or kind._decode is not plain._decode:
        return {}
    if tokenizer.clean_up_tokenization_spaces or tokenizer.backend_tokenizer.decoder is None:
        return {}
    return dict(json.loads(tokenizer.backend_tokenizer.decoder.__getstate__()))


def _pieces(backend: Any, piece: Callable[[str], bytes | None]) -> np.ndarray:
    """List what each id adds to a text, nothing for special tokens and ids without a token; objects [vocabulary]."""
    added = backend.get_added_tokens_decoder()
    tokens = {i: token for token, i in backend.get_vocab(with_added_tokens=False).items()}
    tokens |= {i: "" if token.special else token.content for i, token in added.items()}
    pieces = np.full(max(tokens) + 1, b"", object)
    for i, token in tokens.items():
        pieces[i] = piece(token)
    return pieces


_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())  # printable bytes, which stand for themselves, come first
_BYTES = sorted(range(256), key=lambda byte: chr(byte) not in _ALPHABET)
_BYTE_OF = dict(zip(map(ord, _ALPHABET), _BYTES, strict=True))


def _byte_level_piece(token: str) -> bytes:
    if all(ord(c) in _BYTE_OF for c in token):
        return token.translate(_BYTE_OF).encode("latin-1")
    return token.encode()  # an added token's own text


def _sentencepiece_piece(token: str) -> bytes | None:
    """Return the token's bytes; None for a byte token, which is decoded together with its neighbours."""
    is_byte = token.startswith("<0x") and token.endswith(">") and len(token.encode()) == 6
    return None if is_byte else token.replace("▁", " ").encode()
