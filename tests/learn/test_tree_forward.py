"""Level by level equals one padded sequence per segment: every log-prob and every gradient."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spo_core.learn.tree_forward import TrainedSegments, layout, trained_logprobs
from spo_core.tree import Finish, Node, RolloutTree
from tests.conftest import random_tree
from tests.learn.naive import flat_logprobs


def masked(rng: np.random.Generator, tree: RolloutTree, share: float) -> TrainedSegments:
    masks = [
        rng.random(len(n.token_ids)) < share if n.trainable else np.zeros(len(n.token_ids), bool) for n in tree.nodes
    ]
    return TrainedSegments(tree, tuple(masks))


def gradients(model, logprobs: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    (logprobs * weights).sum().backward()
    return [p.grad.clone() for p in model.parameters()]


def relative_error(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    difference = sum(float((x - y).square().sum()) for x, y in zip(a, b, strict=True)) ** 0.5
    return difference / max(sum(float(x.square().sum()) for x in a) ** 0.5, 1e-30)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), depth=st.integers(1, 4), share=st.sampled_from([0.1, 0.5, 1.0]))
def test_equal_to_flat_sequences(policy, seed, depth, share):
    rng = np.random.default_rng(seed)
    items = [masked(rng, random_tree(rng, depth=depth, widest=3, longest=6), share) for _ in range(3)]
    expected, _ = flat_logprobs(policy, items, 0.7)
    batch = layout(items)
    found = trained_logprobs(policy, batch, 0.7)
    assert found.shape == expected.shape
    if len(expected) == 0:
        return
    assert found.detach().numpy() == pytest.approx(expected.detach().numpy(), rel=1e-5, abs=1e-5)
    weights = torch.from_numpy(rng.standard_normal(len(expected)).astype(np.float32))
    assert relative_error(gradients(policy, expected, weights), gradients(policy, found, weights)) <= 1e-5


def test_grouped_query_attention_and_another_architecture(tokenizer):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=20,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config)
    rng = np.random.default_rng(5)
    items = [masked(rng, random_tree(rng, depth=3, widest=3, longest=6), 1.0) for _ in range(2)]
    expected, _ = flat_logprobs(model, items, 1.0)
    found = trained_logprobs(model, layout(items), 1.0)
    weights = torch.ones(len(expected))
    assert relative_error(gradients(model, expected, weights), gradients(model, found, weights)) <= 1e-5


def full_tree(branch_factors: list[int], prompt: int, segment: int) -> RolloutTree:
    rng = np.random.default_rng(0)
    nodes = [Node.prompt(rng.integers(3, 20, prompt))]
    level = [0]
    for depth, factor in enumerate(branch_factors):
        finish = Finish.STOP if depth + 1 == len(branch_factors) else Finish.SEGMENT
        below = []
        for parent in level:
            for _ in range(factor):
                below.append(len(nodes))
                nodes.append(Node.sampled(parent, rng.integers(3, 20, segment), -np.ones(segment), finish))
        level = below
    return RolloutTree("q", tuple(nodes))


def test_every_prefix_is_forwarded_once():
    tree = full_tree([6, 6, 6], prompt=80, segment=30)
    item = TrainedSegments(tree, tuple(np.full(len(n.token_ids), n.trainable) for n in tree.nodes))
    unique = sum(len(n.token_ids) for n in tree.nodes)
    leaves = len(tree.leaves)
    assert layout([item]).forwarded_tokens == unique - leaves  # a leaf's last token predicts nothing


def test_what_is_not_trained_is_not_forwarded():
    tree = full_tree([2, 2], prompt=5, segment=3)
    masks = [np.zeros(len(n.token_ids), bool) for n in tree.nodes]
    masks[tree.children[2][1]][-1] = True
    assert layout([TrainedSegments(tree, tuple(masks))]).forwarded_tokens == 5 + 3 + 2


def test_a_one_token_segment_is_predicted_by_its_parent(policy):
    tree = RolloutTree("q", (Node.prompt([3, 4]), Node.sampled(0, [5], [-1], Finish.STOP)))
    item = TrainedSegments(tree, (np.zeros(2, bool), np.ones(1, bool)))
    batch = layout([item])
    assert batch.forwarded_tokens == 2
    expected = torch.log_softmax(policy(input_ids=torch.tensor([[3, 4]])).logits[0, -1], -1)[5]
    assert float(trained_logprobs(policy, batch, 1.0)[0].detach()) == pytest.approx(float(expected), abs=1e-6)


def test_nothing_to_train_is_an_empty_batch(policy):
    tree = full_tree([2], prompt=5, segment=3)
    batch = layout([TrainedSegments(tree, tuple(np.zeros(len(n.token_ids), bool) for n in tree.nodes))])
    assert trained_logprobs(policy, batch, 1.0).shape == (0,) and layout([]).forwarded_tokens == 0
