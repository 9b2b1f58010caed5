"""The right answer's probability after a prefix, against plain sequences; what has no room is worth nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from spo_core.config import GoldAnswer, LearnParams
from spo_core.learn.backend import TorchBackend
from spo_core.learn.gold_answer import AnswerValues, Ending, answer_logprobs, answered, ending
from tests.conftest import random_tree

VALUE = GoldAnswer(type="gold_answer")
LEARN = LearnParams.model_validate({"learning_rate": 1e-3, "max_tokens_per_forward": 60})


def words() -> Tokenizer:
    """Marks a word's beginning in its token, as SentencePiece does."""
    vocabulary = {word: i for i, word in enumerate(["</s>", "<unk>", "▁", "\n", "####", "▁27", "27"])}
    made = Tokenizer(models.Unigram([(word, -1.0) for word in vocabulary], unk_id=1))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    return made


def trees_of(seed: int, count: int = 5):
    rng = np.random.default_rng(seed)
    return [random_tree(rng, depth=3, widest=3, longest=5) for _ in range(count)]


def valued(policy, trees, end: Ending, context_length: int = 128, temperature: float = 1.0):
    backend = TorchBackend(policy, None, LEARN)
    found = AnswerValues(lambda _: end, lambda asked: answer_logprobs(backend, asked, temperature, 60))
    return found.values(trees, context_length)


@pytest.mark.parametrize(("cue", "temperature"), [(0, 1.0), (2, 0.7)])
def test_values_are_those_of_plain_sequences(policy, cue, temperature):
    """One sequence a state: prompt, prefix and answer, read without a tree."""
    trees, end = trees_of(1), Ending((5, 6, 7, 2), cue)
    found = valued(policy, trees, end, temperature=temperature)
    plain = TorchBackend(policy, None, LEARN).policy.model
    states = 0
    for tree, before in zip(trees, found, strict=True):
        for index, node in enumerate(tree.nodes[1:], start=1):
            path = [tree.nodes[i].token_ids for i in tree.path(node.parent)]
            ids = torch.from_numpy(np.concatenate([*path, end.token_ids]).astype(np.int64))
            with torch.no_grad():
                logprobs = (plain(input_ids=ids[None]).logits[0] / temperature).log_softmax(-1)
            scored = range(len(ids) - len(end.token_ids) + cue, len(ids))
            total = sum(float(logprobs[k - 1, ids[k]]) for k in scored)
            assert before[index][0] == pytest.approx(math.exp(total), rel=1e-4)
            assert np.isnan(before[index][1:]).all()
            states += 1
    assert states > 20


def test_a_state_without_room_for_the_answer_is_worth_nothing(policy):
    trees, end = trees_of(2), Ending((5, 6, 7), 1)
    whole, short = valued(policy, trees, end), valued(policy, trees, end, context_length=10)
    fits = cut = 0
    for tree, free, bound in zip(trees, whole, short, strict=True):
        for index, node in enumerate(tree.nodes[1:], start=1):
            taken = len(tree.nodes[0].token_ids) + tree.completion_lengths[node.parent] + 3
            assert bound[index][0] == pytest.approx(free[index][0] if taken <= 10 else 0.0, rel=1e-5)
            fits, cut = fits + (taken <= 10), cut + (taken > 10)
    assert fits and cut


def test_no_tree_has_room(policy):
    assert all(own[0] == 0.0 for tree in valued(policy, trees_of(3), Ending((5,) * 200, 0)) for own in tree[1:])


def test_answers_hang_off_what_goes_on_alone():
    for tree in trees_of(4):
        found = answered(tree, Ending((5, 6), 0), 100)
        assert found.states == tuple(i for i, children in enumerate(tree.children) if children)
        assert [n.parent for n in found.tree.nodes[len(tree.nodes) :]] == list(found.states)


def test_an_answer_is_written_as_its_form_ends_a_response(tokenizer):
    """A form that closes nothing ends with EOS, so that a longer number is another answer."""
    hashes = ending(VALUE, "hashes", tokenizer, "27")
    assert tokenizer.decode(hashes.token_ids[: hashes.cue]) == "\n#### "
    assert hashes.token_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(hashes.token_ids[hashes.cue : -1]) == "27"
    joined = PreTrainedTokenizerFast(tokenizer_object=words(), eos_token="</s>")
    sharing = ending(VALUE, "hashes", joined, "27")  # the cue's last space stands in the answer's token
    assert sharing.token_ids == (*joined.encode("\n#### 27", add_special_tokens=False), joined.eos_token_id)
    assert [joined.convert_ids_to_tokens(i) for i in sharing.token_ids[sharing.cue :]] == ["▁27", "</s>"]
    own = ending(GoldAnswer(type="gold_answer", cue="=", close="\n"), "hashes", tokenizer, "27")
    assert tokenizer.decode(own.token_ids) == "=27\n" and own.cue == 1
