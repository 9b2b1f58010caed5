"""Texts joined from the bytes of tokens are those of the tokenizer, for any ids."""

from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from spo_core.policy.checkpoint import make_tokenizer
from spo_core.problems import problem_set
from spo_core.rollout.decoding import make_decode
from tests.conftest import SHORT_DATA
from tests.policy.test_tokenizer import FILES, NAMED, QUESTION, file_of

OWN = ("bytes", "characters")
JOINED = [*OWN, *(name for name in FILES if name.startswith(("bytes", "sentencepiece")))]
BEYOND = 40  # ids without a token, as where a policy's head is padded


def make(name: str, kind=PreTrainedTokenizerFast, **more):
    if name in OWN:
        return make_tokenizer(name, problem_set(SHORT_DATA))
    return kind(tokenizer_object=Tokenizer.from_str(file_of(name)), **NAMED, **more)


@cache
def with_added(name: str):
    """Besides its own: added tokens, of which one is skipped, and ids without a token between and behind them."""
    tokenizer = make(name)
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken(" é▁ 漢", normalized=False), AddedToken("Ġ "), "<0x0A>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    return tokenizer


@pytest.mark.parametrize("name", [*OWN, *FILES])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_text_is_the_tokenizers(name, data):
    tokenizer = with_added(name)
    last = len(tokenizer) + BEYOND
    token = st.integers(0, last) | st.integers(max(0, len(tokenizer) - 6), len(tokenizer)) | st.integers(0, 3)
    ids = np.array(data.draw(st.lists(token, max_size=60)), data.draw(st.sampled_from([np.int32, np.int64])))
    assert make_decode(tokenizer)(ids) == tokenizer.decode(ids.tolist(), skip_special_tokens=True)


@settings(max_examples=200)
@given(st.binary(max_size=40))
@example(bytes.fromhex("e08080eda080f4908080f09f98c0afff"))
def test_bytes_that_are_no_text_are_replaced_alike(data):
    tokenizer = with_added("bytes")
    marks = sorted(pre_tokenizers.ByteLevel.alphabet())
    order = sorted(range(256), key=lambda byte: (chr(byte) not in marks, byte))
    ids = np.array([tokenizer.convert_tokens_to_ids(marks[order.index(byte)]) for byte in data], np.int64)
    assert make_decode(tokenizer)(ids) == tokenizer.decode(ids.tolist()) == data.decode(errors="replace")


@pytest.mark.parametrize("name", JOINED)
def test_the_tokenizer_is_not_asked_where_bytes_are_enough(name):
    tokenizer = make(name)
    text = "1+1=2\n#### 2" if name == "characters" else QUESTION
    ids = np.array(tokenizer.encode(text, add_special_tokens=False))
    if name.startswith("sentencepiece"):  # characters that are runs of bytes there are left to the tokenizer
        ids = np.array([i for i in ids.tolist() if not tokenizer.convert_ids_to_tokens(i).startswith("<0x")])
    decode, expected = make_decode(tokenizer), tokenizer.decode(ids, skip_special_tokens=True)
    asked = []
    tokenizer.decode = lambda *_, **__: asked.append(1)
    assert decode(ids) == expected and len(expected) > 10 and not asked


class Shouting(PreTrainedTokenizerFast):
    def _decode(self, *arguments, **more):
        return super()._decode(*arguments, **more).upper()


def spoilt(decoder):
    tokenizer = Tokenizer.from_str(file_of("sentencepiece, legacy"))
    tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMED)


REPLACE, BYTES, FUSE = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()
OTHERS = {
    "another class": lambda: make("bytes as GPT-2", Shouting),
    "clean-up": lambda: make("word pieces", clean_up_tokenization_spaces=True),
    "two spaces stripped": lambda: spoilt(decoders.Sequence([REPLACE, BYTES, FUSE, decoders.Strip(" ", 2, 0)])),
    "spaces stripped behind": lambda: spoilt(decoders.Sequence([REPLACE, BYTES, FUSE, decoders.Strip(" ", 1, 1)])),
    "another replacement": lambda: spoilt(decoders.Sequence([decoders.Replace("▁", "_"), BYTES, FUSE])),
    "no decoder": lambda: make("words"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_decoder_is_asked(name):
    tokenizer = OTHERS[name]()
    ids = np.array([*tokenizer.encode("  a the . end, 's  ", add_special_tokens=False), 5, 7, 9])
    assert make_decode(tokenizer)(ids) == tokenizer.decode(ids, skip_special_tokens=True)
