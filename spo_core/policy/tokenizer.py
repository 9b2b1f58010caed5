"""Loads a policy's tokenizer as its own tokenizer.json has it, whatever transformers makes of that file.

transformers 5 rebuilds tokenizers: it takes vocabulary and merges from tokenizer.json, and all else from the class that
tokenizer_config.json or the model type names. Where that class is of another kind (byte-level files under model type
llama, as DeepSeek's), spaces and newlines are lost silently: issues 45488, 46710, 48206 of transformers.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.utils import cached_file

from spo_core.errors import DataError, first_line
from spo_core.policy.checkpoint_files import read_object

log = logging.getLogger(__name__)

GENERAL = PreTrainedTokenizerFast.__name__

TEXTS = (
    "Solve the problem: 3 + 14 = 17, so x2 = 1,234.50 and (a-b)/c < 0.",
    "  two spaces before, one behind ",
    "a  b   c    d\te\t\tf",
    "line\nline\n\nline\n\n\nProblem:\r\n    indented\n\tby tab\n",
    "\n",
    " ",
    "don't can't we'll I'm 1st 007 2024-01-02 0.5% #### 42",
    "$\\frac{1}{2} \\le \\sqrt{x^2 + y_1} \\cdot \\left\\{ \\boxed{-\\pi} \\right\\}$ \\[ \\text{so } a \\]",
    "<think>\nfirst, second.</think> `code` __init__ [x] {y} <z> & | ~ @ ! ?",
    "naïve café Ünï — “quoted” … ½ × ÷ ≤ ∑ √2 e\u0301",
    "Привет мир, 数学问题 のテスト, العربية ١٢, हिन्दी, ไทย, 한국어, 😀👍🏽, \u200b\u00a0\u3000x",
)
WORDS = "The sum of twelve and thirty is forty two"


def load_tokenizer(path: str | Path, revision: str | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder or hub id, with the ids and texts of its tokenizer.json.

    Raises DataError where transformers cannot be made to give these, where a tokenizer without that file loses words,
    and where it adds BOS or EOS tokens although none are asked for: templates write their own.
    """
    found = cached_file(path, "tokenizer.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    own = None if found is None else _read(found)
    tokenizer = _load(path, revision, own)
    if own is None:
        _check_words(tokenizer, path)
    ids = tokenizer(WORDS, add_special_tokens=False)["input_ids"]
    for end, token in ((ids[:1], tokenizer.bos_token_id), (ids[-1:], tokenizer.eos_token_id)):
        if end == [token] and token != tokenizer.unk_token_id:
            raise DataError(
                f"{path}: its tokenizer adds {tokenizer.convert_ids_to_tokens(token)!r} to every text by itself; take "
                "that out of the normalizer or pre_tokenizer of tokenizer.json"
            )
    _complete(tokenizer, path, revision)
    return cast(PreTrainedTokenizerFast, tokenizer)


def _complete(tokenizer: Any, path: str | Path, revision: str | None) -> None:
    """Give a tokenizer without an end token the checkpoint's own, and one without a token for padding the end token.

    Padding is never seen by a policy.
    """
    for name in ("generation_config.json", "config.json"):
        file = cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        if tokenizer.eos_token_id is None and file is not None:
            ids = read_object(Path(file)).get("eos_token_id")
            first = ids[0] if isinstance(ids, list) and ids else ids
            if isinstance(first, int) and 0 <= first < len(tokenizer):
                tokenizer.eos_token = tokenizer.convert_ids_to_tokens(first)
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token


def require_end(tokenizer: Any, path: str | Path) -> None:
    """Raise DataError for a tokenizer without an end token: nothing would end a completion."""
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"{path}: its tokenizer has no end token; name one as eos_token in tokenizer_config.json, or its id as "
            "eos_token_id in generation_config.json"
        )


def _load(path: str | Path, revision: str | None, own: Tokenizer | None) -> Any:
    try:
        loaded = _from_pretrained(path, revision)
        differs = None if own is None else difference(loaded, own)
    except (OSError, ValueError):
        raise
    except Exception as error:  # of any type: a class that cannot take the file fails somewhere inside
        if own is None:
            raise DataError(f"{path}: transformers makes no tokenizer of it: {first_line(error)}") from None
        differs = first_line(error)
    if own is None or differs is None:
        return loaded
    replaced = PreTrainedTokenizerFast.from_pretrained(
        path, revision=revision or "main", clean_up_tokenization_spaces=False, added_tokens_decoder={}
    )
    if still := difference(replaced, own):
        raise DataError(
            f"{path}: tokenizer.json and what tokenizer_config.json makes of it differ: {still}; make the two agree"
        )
    _say(str(path), differs)
    return replaced


def _from_pretrained(path: str | Path, revision: str | None) -> Any:
    """What AutoTokenizer makes of a checkpoint. It makes the general class where that is named, as in checkpoints that
    have no other; then its import, seconds with torch's, is spared."""
    file = cached_file(path, "tokenizer_config.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    if file is not None and read_object(Path(file)).get("tokenizer_class") == GENERAL:
        return PreTrainedTokenizerFast.from_pretrained(path, revision=revision or "main")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)


def _read(path: str) -> Tokenizer:
    try:
        own = Tokenizer.from_file(path)
    except Exception as error:  # tokenizers has no class of its own for what it cannot read
        raise DataError(f"{path}: cannot be read as a tokenizer: {first_line(error)}") from None
    own.no_truncation()
    own.no_padding()
    return own


@cache  # once a checkpoint
def _say(path: str, differs: str) -> None:
    log.warning("%s: transformers' tokenizer is not that of its tokenizer.json (%s); the file's is used", path, differs)


def difference(tokenizer: Any, own: Tokenizer) -> str | None:
    """Describe the first difference between a transformers tokenizer and its file's own, over TEXTS and the file's
    added tokens; None without one. The tokenizer may have special tokens that the file lacks."""
    vocabulary = tokenizer.get_vocab()
    for token, index in own.get_vocab(with_added_tokens=True).items():
        if vocabulary.get(token) != index:
            return f"token {token!r} has id {vocabulary.get(token)}, not {index}"
    added = [token.content for token in own.get_added_tokens_decoder().values()]
    around = ["".join(f"a{token}b {token} c\n" for token in added)] if added else []
    for text in (*TEXTS, *around):
        right = own.encode(text, add_special_tokens=False).ids
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
        if found != right:
            at = next((i for i, pair in enumerate(zip(found, right, strict=False)) if pair[0] != pair[1]), 0)
            return f"{text[:30]!r} gets ids {found[at : at + 5]}, not {right[at : at + 5]}"
        for ids in (right, right[1:], right[-1:]):  # decoders may treat the first token specially
            texts = own.decode(ids, skip_special_tokens=False), tokenizer.decode(ids, skip_special_tokens=False)
            if texts[0] != texts[1]:
                return f"ids {ids[:5]} are {texts[1][:30]!r}, not {texts[0][:30]!r}"
    return None


def _check_words(tokenizer: Any, path: str | Path) -> None:
    """Raise DataError where decoding the ids of known words does not give the words."""
    ids = tokenizer(WORDS, add_special_tokens=False)["input_ids"]
    back = tokenizer.decode(ids)
    if tokenizer.unk_token_id not in ids and back.lower().split() != WORDS.lower().split():
        raise DataError(f"{path}: its tokenizer gives {back!r} back for {WORDS!r}; it needs a tokenizer.json")
