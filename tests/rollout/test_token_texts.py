"""Texts of single tokens: they concatenate to the response, whatever the tokenizer splits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spo_core.config import DataParams
from spo_core.policy.checkpoint import make_tokenizer
from spo_core.problems import problem_set
from spo_core.rollout.token_texts import token_texts

BYTES = make_tokenizer("bytes", problem_set(DataParams(problem_set="gsm8k")))


def test_a_character_belongs_to_the_token_that_completes_it():
    ids = BYTES.encode("é\n漢x", add_special_tokens=False)
    assert token_texts(BYTES, [*ids, BYTES.eos_token_id]) == ["", "é", "\n", "", "", "漢", "x", ""]


def test_tokens_of_several_characters(tokenizer):
    ids = tokenizer.encode("1+1=2\n#### 2", add_special_tokens=False)
    assert token_texts(tokenizer, ids) == ["1", "+", "1", "=", "2", "\n", "#### ", "2"]


@given(st.lists(st.integers(0, len(BYTES) - 1), max_size=40))
def test_pieces_concatenate_to_the_text_of_any_bytes(ids):
    pieces = token_texts(BYTES, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == BYTES.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("ids", [[], [2]])
def test_nothing_sampled_or_nothing_to_read(ids):
    assert token_texts(BYTES, ids) == [""] * len(ids)
