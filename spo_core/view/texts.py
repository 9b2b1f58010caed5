"""Texts of token ids, by the tokenizer.json of a run's policy: light, and the same ids and texts as training has."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from spo_core.observe.formatting import visible
from spo_core.paths import Paths
from spo_core.rollout.token_texts import token_texts
from spo_core.view.catalogue import Run, first_policy

CONTEXT = 4  # tokens of the segment before that a token's text may depend on


class Texts:
    """Decodes for pages; without a tokenizer a token is its number. All that it returns is ``formatting.visible``."""

    def __init__(self, tokenizer: Any = None) -> None:
        self.tokenizer = tokenizer

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        if self.tokenizer is None:
            return "".join(f"⟨{i}⟩" for i in ids)
        return visible(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def pieces(self, before: Sequence[int], ids: Sequence[int]) -> list[str]:
        """A text for each of ``ids`` behind ``before``; a special token has its name, and one whose bytes are no
        character yet an empty text."""
        if self.tokenizer is None:
            return [f"⟨{i}⟩" for i in ids]
        context = list(before)[-CONTEXT:]
        found = token_texts(self.tokenizer, [*context, *ids])[len(context) :]
        return [visible(text) if text else self._special(int(i)) for text, i in zip(found, ids, strict=True)]

    def _special(self, token: int) -> str:
        name = self.tokenizer.id_to_token(token)
        if name is None:
            return f"⟨{token}⟩"
        return visible(name) if token in _special_ids(self.tokenizer) else ""


@lru_cache(maxsize=8)
def _special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special)


def texts_of(run: Run, paths: Paths) -> Texts:
    """Texts by a policy of the run, all of which have one tokenizer; by none where no policy is there."""
    folders = list(run.policies().values()) or [folder for folder in [first_policy(run, paths)] if folder]
    for folder in folders:
        path = folder / "tokenizer.json"
        if path.is_file():
            return Texts(_tokenizer(path, path.stat().st_mtime_ns))
    return Texts()


@lru_cache(maxsize=8)
def _tokenizer(path: Path, stamp: int) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
