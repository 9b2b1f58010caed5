"""Seeds: every random draw of a run comes from its seed and the name of what is drawn."""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any names: (run seed, iteration, question id, node path). Distinct names, distinct noise."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def state_name(token_ids: np.ndarray) -> tuple[str, str]:
    """Names the state behind these tokens of a response, int32 [n]: equal states of a question, equal noise."""
    return "state", hashlib.blake2b(np.asarray(token_ids, "<i4").tobytes(), digest_size=16).hexdigest()
