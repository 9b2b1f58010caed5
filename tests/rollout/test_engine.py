"""The engine against the plain model: same probabilities, whatever shares the batch or the cache."""

import numpy as np
import pytest
import torch

from spo_core.rollout.drawing import nucleus
from spo_core.rollout.engine import Request
from spo_core.rollout.transformers_engine import TransformersEngine

PROMPTS = [[3, 4, 5, 6], [7], [8, 9, 3, 4, 5, 5, 6, 7]]


def make_engine(policy, **options) -> TransformersEngine:
    return TransformersEngine(policy, **({"stop_ids": (2,), "context_length": 40} | options))


def drain(engine):
    done = {}
    while engine.busy:
        done |= {c.request_id: c for c in engine.step()}
    return done


def request(number, ids, **options):
    defaults = {"max_tokens": 12, "seed": 100 + number}
    return Request(number, np.asarray(ids, np.int32), **(defaults | options))


def plain_logprobs(policy, prefix, sampled, temperature):
    ids = torch.tensor([[*prefix, *sampled]])
    with torch.no_grad():
        logits = policy(input_ids=ids).logits[0, len(prefix) - 1 : -1].double() / temperature
    return torch.log_softmax(logits, -1).gather(-1, torch.tensor(sampled)[:, None])[:, 0].numpy()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_a_plain_forward(policy, temperature):
    engine = make_engine(policy, temperature=temperature)
    engine.submit(request(i, p) for i, p in enumerate(PROMPTS))
    for number, completion in drain(engine).items():
        expected = plain_logprobs(policy, PROMPTS[number], completion.token_ids.tolist(), temperature)
        assert completion.logprobs == pytest.approx(expected, abs=2e-5)


def test_a_request_does_not_depend_on_its_company(policy):
    """Alone, crowded, or waiting for a slot: the same tokens for the same seed."""
    together = make_engine(policy)
    together.submit(request(i, PROMPTS[i % 3]) for i in range(9))
    crowded = make_engine(policy, max_concurrency=2)
    crowded.submit(request(i, PROMPTS[i % 3]) for i in range(9))
    a, b = drain(together), drain(crowded)
    for i in range(9):
        alone = make_engine(policy)
        alone.submit([request(i, PROMPTS[i % 3])])
        tokens = drain(alone)[i].token_ids.tolist()
        assert a[i].token_ids.tolist() == b[i].token_ids.tolist() == tokens


def test_a_child_of_a_kept_parent_equals_a_prefill_of_the_whole_prefix(policy):
    engine = make_engine(policy, stop_ids=())
    engine.submit([request(0, PROMPTS[0], max_tokens=5, keep=True)])
    prefix = [*PROMPTS[0], *drain(engine)[0].token_ids.tolist()]
    for cut in (len(prefix), len(prefix) - 2):  # a child of the segment, and a value rollout from inside it
        engine.submit([request(1, prefix[:cut], parent=0)])
        cached = drain(engine)[1]
        fresh = make_engine(policy, stop_ids=())
        fresh.submit([request(1, prefix[:cut])])
        assert cached.token_ids.tolist() == drain(fresh)[1].token_ids.tolist()
        expected = plain_logprobs(policy, prefix[:cut], cached.token_ids.tolist(), 1.0)
        assert cached.logprobs == pytest.approx(expected, abs=2e-5)


def test_children_may_be_submitted_while_others_decode(policy):
    engine = make_engine(policy, stop_ids=(), max_concurrency=3)
    engine.submit([request(0, PROMPTS[0], max_tokens=2, keep=True), request(1, PROMPTS[2], max_tokens=20)])
    children, done = {}, {}
    while engine.busy:
        for completion in engine.step():
            done[completion.request_id] = completion
            if completion.request_id == 0:
                prefix = [*PROMPTS[0], *completion.token_ids.tolist()]
                children = {n: prefix for n in (2, 3, 4)}
                engine.submit(request(n, prefix, parent=0) for n in children)
    assert set(done) == {0, 1, 2, 3, 4}
    for n, prefix in {**children, 1: PROMPTS[2]}.items():
        expected = plain_logprobs(policy, prefix, done[n].token_ids.tolist(), 1.0)
        assert done[n].logprobs == pytest.approx(expected, abs=2e-5)


def test_new_weights_are_used_at_once(policy):
    engine = make_engine(policy, stop_ids=())
    engine.submit([request(0, PROMPTS[0], keep=True)])
    drain(engine)
    with torch.no_grad():
        policy.model.embed_tokens.weight.mul_(-1.0)
    engine.policy_changed(1)
    engine.submit([request(1, PROMPTS[0], parent=0)])
    completion = drain(engine)[1]
    expected = plain_logprobs(policy, PROMPTS[0], completion.token_ids.tolist(), 1.0)
    assert completion.logprobs == pytest.approx(expected, abs=2e-5)


def test_weights_may_not_change_under_a_request(policy):
    engine = make_engine(policy)
    engine.submit([request(0, PROMPTS[0])])
    with pytest.raises(RuntimeError, match="being decoded"):
        engine.policy_changed(1)


@pytest.mark.parametrize("max_tokens", [0, 37])
def test_no_request_may_exceed_the_context(policy, max_tokens):
    with pytest.raises(ValueError, match=r"within 1\.\.36"):
        make_engine(policy).submit([request(0, PROMPTS[0], max_tokens=max_tokens)])


def test_a_parent_with_other_tokens_is_refused(policy):
    engine = make_engine(policy, stop_ids=())
    engine.submit([request(0, PROMPTS[0], keep=True)])
    drain(engine)
    engine.submit([request(1, [9, 9, 9], parent=0)])
    with pytest.raises(ValueError, match="does not share the tokens"):
        engine.step()


def test_sampled_frequencies_are_the_probabilities(policy):
    """First tokens of 4000 seeds against the distribution: a chi-square test at one in ten thousand."""
    from scipy.stats import chisquare

    engine = make_engine(policy, stop_ids=(), max_concurrency=500)
    engine.submit(request(i, PROMPTS[0], max_tokens=1) for i in range(4000))
    counts = np.bincount([c.token_ids[0] for c in drain(engine).values()], minlength=policy.config.vocab_size)
    with torch.no_grad():
        probs = torch.softmax(policy(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].double(), -1).numpy()
    common = probs * 4000 >= 5
    assert counts[probs * 4000 < 0.01].sum() == 0
    expected = probs[common] / probs[common].sum() * counts[common].sum()
    assert common.sum() > 5 and chisquare(counts[common], expected).pvalue > 1e-4


def test_nucleus_keeps_the_smallest_sufficient_set():
    probs = torch.tensor([[0.5, 0.1, 0.3, 0.1]])
    assert nucleus(probs, 0.5)[0].tolist() == pytest.approx([0.5, 0, 0, 0])
    assert nucleus(probs, 0.6)[0].tolist() == pytest.approx([0.5, 0, 0.3, 0])
    assert (nucleus(probs, 1.0) == probs).all()


def test_top_p_samples_from_the_nucleus_only(policy):
    engine = make_engine(policy, stop_ids=(), top_p=0.3)
    engine.submit(request(i, PROMPTS[0], max_tokens=1) for i in range(200))
    with torch.no_grad():
        probs = torch.softmax(policy(input_ids=torch.tensor([PROMPTS[0]])).logits[:, -1].double(), -1)
    allowed = set(torch.nonzero(nucleus(probs, 0.3)[0])[:, 0].tolist())
    assert {int(c.token_ids[0]) for c in drain(engine).values()} <= allowed


@pytest.mark.parametrize("options", [{}, {"temperature": 0.6}, {"top_p": 0.5}])
def test_entropies_are_those_of_the_full_scaled_distribution(policy, options):
    engine = make_engine(policy, entropies=True, **options)
    engine.submit(request(i, p) for i, p in enumerate(PROMPTS))
    for number, completion in drain(engine).items():
        prefix, sampled = PROMPTS[number], completion.token_ids.tolist()
        with torch.no_grad():
            logits = policy(input_ids=torch.tensor([[*prefix, *sampled]])).logits[0, len(prefix) - 1 : -1].double()
        expected = torch.distributions.Categorical(logits=logits / options.get("temperature", 1.0)).entropy()
        assert completion.entropies.dtype == np.float32
        assert completion.entropies == pytest.approx(expected.numpy(), abs=2e-5)


def test_entropies_are_given_only_when_asked_for(policy):
    engine = make_engine(policy)
    engine.submit([request(0, PROMPTS[0])])
    assert not engine.gives_entropies and drain(engine)[0].entropies is None
