"""Stop strings end a response at the token that completes them, wherever segments begin and end."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spo_core.config import CreditParams, DataParams, RolloutParams
from spo_core.policy import make_tokenizer
from spo_core.problems import problem_set
from spo_core.rollout.sampler import Sampler
from spo_core.rollout.stops import stop_at
from spo_core.rollout.transformers_engine import TransformersEngine
from spo_core.tree import Finish
from tests.rollout.test_sampler import CHAIN, GRPO, PROMPTS, TREE

BYTES = make_tokenizer("bytes", problem_set(DataParams()))


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
    assert any(n.finish is Finish.STOP and n.token_ids[-1] == token for tree in ours for n in tree.nodes)
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
            assert bool(found) <= (tree.nodes[leaf].finish is Finish.STOP)
            if found:
                assert min(found) == len(text) - 2 and not tree.children[leaf]
                across += len(tree.nodes[leaf].token_ids) == 1
        for index, node in enumerate(tree.nodes[1:], start=1):
            assert len(node.token_ids) == len(node.logprobs) > 0, index
    assert across, "the policy of this test should end some strings in a new segment"


def test_no_strings_ask_for_nothing(tokenizer):
    assert stop_at(tokenizer, ()) is None
