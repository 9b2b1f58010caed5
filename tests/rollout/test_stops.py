"""Stop strings end a response at the token that completes them, wherever segments begin and end."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from spo_core.config import CreditParams, RolloutParams
from spo_core.policy.checkpoint import make_tokenizer
from spo_core.problems import problem_set
from spo_core.rollout.sampler import Sampler
from spo_core.rollout.stops import stop_at
from spo_core.rollout.token_texts import token_texts
from spo_core.rollout.transformers_engine import TransformersEngine
from spo_core.tree import FinishReason
from tests.conftest import SHORT_DATA
from tests.policy.test_tokenizer import FILES, NAMED, file_of
from tests.rollout.test_sampler import CHAIN, GRPO, PROMPTS, TREE

BYTES = make_tokenizer("bytes", problem_set(SHORT_DATA))


def grow(policy, tokenizer, credit, branch_factors, *, strings=(), stop_ids=(2,), context_length=40):
    params = RolloutParams(questions=2, branch_factors=branch_factors, context_length=context_length)
    engine = TransformersEngine(policy, stop_ids=stop_ids, context_length=context_length, max_concurrency=7)
    defaults = {"advantage": {"type": "difference"}, "mask": {"type": "all"}}
    credit = CreditParams.model_validate(defaults | credit)
    stop = stop_at(tokenizer, strings)
    return Sampler(engine, params, credit, seed=1, iteration=1, version=0, stop=stop).grow(PROMPTS)


TEXTS = st.text(alphabet="ab\né漢", max_size=30)


@given(TEXTS, st.lists(st.text(alphabet="ab\né", min_size=1, max_size=3), max_size=3))
def test_the_end_is_the_first_prefix_that_holds_a_string(text, strings):
    ids = BYTES.encode(text, add_special_tokens=False)
    naive = next((n for n in range(len(ids) + 1) if any(s in BYTES.decode(ids[:n]) for s in strings)), None)
    stop = stop_at(BYTES, strings)
    assert (stop(ids) if stop else None) == naive


@pytest.mark.parametrize(("credit", "branch_factors"), [(TREE, (3, 2, 2)), (GRPO, (5,)), (CHAIN, (3,))])
def test_a_string_of_one_token_stops_as_that_token_does(policy, tokenizer, credit, branch_factors):
    """The same trees, token by token, as if the engine itself had stopped there."""
    token = tokenizer.convert_tokens_to_ids("7")
    ours = grow(policy, tokenizer, credit, branch_factors, strings=("7",))
    theirs = grow(policy, tokenizer, credit, branch_factors, stop_ids=(2, token))
    assert any(n.finish is FinishReason.STOP and n.token_ids[-1] == token for tree in ours for n in tree.nodes)
    for a, b in zip(ours, theirs, strict=True):
        assert len(a.nodes) == len(b.nodes)
        for x, y in zip(a.nodes, b.nodes, strict=True):
            assert np.array_equal(x.token_ids, y.token_ids) and (x.parent, x.finish) == (y.parent, y.finish)
            assert x.logprobs == pytest.approx(y.logprobs, abs=1e-5)


def test_a_string_may_begin_in_one_segment_and_end_in_the_next(policy, tokenizer):
    pairs = [a + b for a in "0123456789" for b in "+-*="]
    across = 0
    for tree in grow(policy, tokenizer, TREE, (4, 4, 4), strings=pairs):
        for leaf in tree.leaves:
            text = tokenizer.decode(tree.completion(leaf), skip_special_tokens=True)
            found = [text.find(pair) for pair in pairs if pair in text]
            assert bool(found) <= (tree.nodes[leaf].finish is FinishReason.STOP)
            if found:
                assert min(found) == len(text) - 2 and not tree.children[leaf]
                across += len(tree.nodes[leaf].token_ids) == 1
        for index, node in enumerate(tree.nodes[1:], start=1):
            assert len(node.token_ids) == len(node.logprobs) > 0, index
    assert across, "the policy of this test should end some strings in a new segment"


def old_definition(tokenizer, ids, strings):
    """The whole response decoded, and the text of every token in it."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    if not any(string in text for string in strings):
        return None
    pieces = token_texts(tokenizer, ids)
    whole = "".join(pieces)
    ends = [whole.index(string) + len(string) for string in strings if string in whole]
    return int(np.searchsorted(np.cumsum([len(p) for p in pieces]), min(ends))) + 1 if ends else None


TEXT = "ab \n\n\nProblem: é漢字😀 \u200d ok.\n#### 12\n\n"


def merged_bytes():
    """Byte-level BPE as policies have it: tokens of several characters, and some that end inside of one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([TEXT * 3, "m: é", "a漢漢b漢", "\n\n\n\n", " 😀 😀a"] * 2, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>")


def byte_fallback():
    """As sentencepiece models have it: spaces written as ▁, and characters it does not know as runs of byte tokens."""
    words = ["▁", "▁a", "b", "\n", "▁Pro", "blem", ":", "▁", "é", "#", "1"]
    vocabulary = {w: i for i, w in enumerate(dict.fromkeys(["<unk>", "<s>", "</s>", *words]))}
    vocabulary |= {f"<0x{b:02X}>": len(vocabulary) + b for b in range(256)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(strip)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


def of_file(name):
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(file_of(name)), **NAMED)


TOKENIZERS = {
    "bytes": BYTES,
    "merged bytes": merged_bytes(),
    "byte fallback": byte_fallback(),
    "characters": make_tokenizer("characters", problem_set(SHORT_DATA)),
} | {name: of_file(name) for name in FILES}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_new_tokens_and_a_window_end_where_the_whole_response_did(name, data):
    """Of any tokens, whole text or not, and wherever the segment before ended."""
    tokenizer = TOKENIZERS[name]
    bytes_of_text = [i for i in range(len(tokenizer)) if tokenizer.decode([i]) in TEXT]
    special = 1 + max(tokenizer.all_special_ids)  # the old definition loses a space behind such a token, but of bytes
    first = 0 if "bytes" in name else special
    token = st.sampled_from([i for i in bytes_of_text if i >= first]) | st.integers(first, len(tokenizer) - 1)
    ids = data.draw(st.lists(token, max_size=60))
    text = tokenizer.decode(ids, skip_special_tokens=True)
    spans = st.tuples(st.integers(0, max(0, len(text) - 1)), st.integers(1, 12))
    own = [text[a : a + n] for a, n in data.draw(st.lists(spans, max_size=2))]
    named = data.draw(st.sampled_from(["\n\n\nProblem:", ":", "é", "漢字", ": ", "b  ", "😀 "]))
    strings = [s for s in [*own, named] if s]
    strings = [s for s in strings if "\ufffd" not in s] or [":"]
    expected = old_definition(tokenizer, ids, strings)
    stop = stop_at(tokenizer, strings)
    assert stop(ids) == expected
    known = data.draw(st.integers(0, max(0, (expected or len(ids)) - 1)))
    if old_definition(tokenizer, ids[:known], strings) is None:
        assert stop(np.asarray(ids, np.int32), known) == expected


def test_what_is_decoded_does_not_grow_with_what_stands_before():
    decoded = []

    class Counting:
        get_vocab, all_special_ids = BYTES.get_vocab, BYTES.all_special_ids

        def decode(self, ids, **more):
            decoded.append(len(ids))
            return BYTES.decode(ids, **more)

    stop = stop_at(Counting(), ["\n\n\nProblem:"])
    ids = BYTES.encode("so it goes; " * 2000, add_special_tokens=False)
    assert stop(ids, len(ids) - 5) is None and sum(decoded) < 200


def test_no_strings_ask_for_nothing(tokenizer):
    assert stop_at(tokenizer, ()) is None
