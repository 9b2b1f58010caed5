"""Every way to forward a tree equals one padded sequence per segment: every log-prob and every gradient."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import Qwen2Config, Qwen2ForCausalLM

from spo_core.learn import head, row_blocks
from spo_core.learn.block_mask import Spans, ancestor_mask
from spo_core.learn.loss import LossInputs
from spo_core.learn.losses import GSPOOptions, gspo
from spo_core.learn.tree_batch import TrainedSegments, layout
from spo_core.learn.tree_forward import TreePolicy
from spo_core.policy.attention import attention
from spo_core.tree import FinishReason, Node, RolloutTree
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
    """Of the gradient as a whole."""
    difference = sum(float((x - y).square().sum()) for x, y in zip(a, b, strict=True)) ** 0.5
    return difference / max(sum(float(x.square().sum()) for x in a) ** 0.5, 1e-30)


def assert_equal_to_flat(model, items, *, checkpointing=False, temperature=0.7, seed=0):
    expected, _ = flat_logprobs(model, items, temperature)
    weights = torch.from_numpy(np.random.default_rng(seed).standard_normal(len(expected)).astype(np.float32))
    wanted = gradients(model, expected, weights) if len(expected) else []
    tree_model = copy.deepcopy(model).train()
    found, _ = TreePolicy(tree_model, "rows", checkpointing=checkpointing)(layout(items), temperature)
    assert found.shape == expected.shape
    if len(expected):
        assert found.detach().numpy() == pytest.approx(expected.detach().numpy(), rel=1e-5, abs=1e-5)
        got = gradients(tree_model, found, weights)
        assert relative_error(wanted, got) <= 1e-5
        for a, b in zip(wanted, got, strict=True):  # and of every parameter
            assert (a - b).norm() <= 1e-5 * a.norm() + 1e-6 * max(w.norm() for w in wanted)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), depth=st.integers(1, 4), share=st.sampled_from([0.1, 0.5, 1.0]))
@pytest.mark.parametrize("alphabet", [1, 2, 20])
def test_equal_to_flat_sequences(policy, alphabet, seed, depth, share):
    """Ragged segments, single children, leaves at any depth, segments that begin alike or are equal, trees of one batch
    that must not see each other."""
    rng = np.random.default_rng(seed)
    trees = [random_tree(rng, depth=depth, widest=3, longest=6) for _ in range(3)]
    items = [masked(rng, spelled(rng, tree, alphabet), share) for tree in trees]
    assert_equal_to_flat(policy, items, seed=seed)


def spelled(rng: np.random.Generator, tree: RolloutTree, alphabet: int) -> RolloutTree:
    """The same tree of other tokens, so many different ones."""
    ids = [rng.integers(0, alphabet, len(node.token_ids)).astype(np.int32) for node in tree.nodes]
    return RolloutTree("q", tuple(replace(node, token_ids=own) for node, own in zip(tree.nodes, ids, strict=True)))


def test_a_regular_tree_is_equal(policy):
    assert_equal_to_flat(policy, [everything(full_tree([3, 2, 2], prompt=7, segment=4))])


def test_many_blocks_of_rows_are_equal(policy, monkeypatch):
    """Trees of which some attend segment by segment and some as a whole, in several calls."""
    monkeypatch.setattr(row_blocks, "CALL", 3000)
    monkeypatch.setattr(row_blocks, "ROW", 30)
    shapes = [([3, 3], 2), ([4, 2], 17), ([2], 30), ([4, 2], 16)]
    items = [everything(full_tree(factors, prompt=9, segment=n)) for factors, n in shapes]
    blocks = layout(items).blocks
    assert len(blocks) > 1 and any(block.valid is not None and len(block.keys) > 1 for block in blocks)
    assert_equal_to_flat(policy, items)


def test_two_threads_give_the_same_bits_every_time(policy):
    """Hundreds of siblings begin behind one token, whose gradient is a sum over them, and both threads have a share:
    sums in the order in which threads come to them would differ here in every run."""
    items = [everything(full_tree([300], prompt=7, segment=6))]
    segments = torch.from_numpy(np.repeat(np.arange(3), 30_000))
    old = torch.randn(len(segments), generator=torch.Generator().manual_seed(1))

    def bits() -> list[torch.Tensor]:
        logprobs, _ = TreePolicy(policy, "rows")(layout(items), 0.7)
        new = old.clone().requires_grad_()
        inputs = LossInputs(new, old, old.sin(), segments)
        gspo(inputs, GSPOOptions(clip_low=0.9, clip_high=9.0)).loss.sum().backward()
        return [*gradients(policy, logprobs, torch.linspace(-1, 1, len(logprobs))), new.grad]

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first = bits()
        for _ in range(5):
            assert all(torch.equal(a, b) for a, b in zip(first, bits(), strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_grouped_query_attention_and_another_architecture(checkpointing):
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
    rng = np.random.default_rng(5)
    items = [masked(rng, random_tree(rng, depth=3, widest=3, longest=6), 0.8) for _ in range(2)]
    assert_equal_to_flat(Qwen2ForCausalLM(config), items, checkpointing=checkpointing)


def test_flex_attention_forward_equals_flat_sequences(policy):
    """On a CPU it has no backward pass; its mask is the one that rows are trained with above."""
    rng = np.random.default_rng(1)
    items = [masked(rng, random_tree(rng, depth=3, widest=3, longest=6), 1.0) for _ in range(3)]
    with torch.no_grad():
        expected, _ = flat_logprobs(policy, items, 1.0)
        found, _ = TreePolicy(policy, "flex")(layout(items), 1.0)
    assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-5, abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_the_ancestor_mask_is_the_path(seed):
    rng = np.random.default_rng(seed)
    items = [masked(rng, random_tree(rng, depth=3, widest=3, longest=3), 0.7) for _ in range(2)]
    batch = layout(items)
    spans = Spans(batch.first, batch.last, batch.position_ids, torch.zeros_like(batch.first))
    at = torch.arange(batch.forwarded_tokens)
    sees = ancestor_mask(spans)(at, at, at[:, None], at[None])
    # a token's position is the number of tokens before it on its path
    assert torch.equal(sees.sum(1) - 1, batch.position_ids)
    assert bool((sees.diagonal() if len(sees) else sees.any(1)).all())


def test_many_chunks_of_the_vocabulary_are_one(policy, monkeypatch):
    rng = np.random.default_rng(2)
    items = [masked(rng, random_tree(rng, depth=3, widest=3, longest=6), 1.0) for _ in range(2)]
    monkeypatch.setattr(head, "CHUNK_LOGITS", 3 * policy.config.vocab_size)
    assert_equal_to_flat(policy, items)
    rows = []
    watched = copy.deepcopy(policy)
    watched.lm_head.register_forward_hook(lambda module, args, out: rows.append(out.shape[1]))
    logprobs, entropy = TreePolicy(watched)(layout(items), 1.0, True)
    (logprobs.sum() + 0 * entropy.sum()).backward()
    assert max(rows) == 3 and sum(rows) == 2 * len(logprobs), "every chunk once in each direction, never more than 3"


def test_entropy_is_that_of_the_distribution(policy):
    rng = np.random.default_rng(3)
    item = masked(rng, random_tree(rng, depth=2, widest=2, longest=4), 1.0)
    batch = layout([item])
    _, entropies = TreePolicy(policy)(batch, 0.7, True)
    assert entropies.shape == batch.targets.shape and not entropies.requires_grad
    key = batch.order[-1]
    path = item.tree.path(key[1])
    ids = np.concatenate([item.tree.nodes[i].token_ids for i in path])
    probs = torch.softmax(policy(input_ids=torch.from_numpy(ids[None].astype(np.int64))).logits[0, -2] / 0.7, -1)
    assert float(entropies[-1].detach()) == pytest.approx(float(-(probs * probs.log()).sum().detach()), rel=1e-4)


def full_tree(branch_factors: list[int], prompt: int, segment: int) -> RolloutTree:
    rng = np.random.default_rng(0)
    nodes = [Node.prompt(rng.integers(3, 20, prompt))]
    level = [0]
    for depth, factor in enumerate(branch_factors):
        finish = FinishReason.STOP if depth + 1 == len(branch_factors) else FinishReason.SEGMENT
        below = []
        for parent in level:
            for _ in range(factor):
                below.append(len(nodes))
                nodes.append(Node.sampled(parent, rng.integers(3, 20, segment), -np.ones(segment), finish))
        level = below
    return RolloutTree("q", tuple(nodes))


def everything(tree: RolloutTree) -> TrainedSegments:
    return TrainedSegments(tree, tuple(np.full(len(n.token_ids), n.trainable) for n in tree.nodes))


def test_every_prefix_is_forwarded_once():
    tree = full_tree([6, 6, 6], prompt=80, segment=30)
    paths = [np.concatenate([tree.nodes[i].token_ids for i in tree.path(leaf)]).tolist() for leaf in tree.leaves]
    # all but whole paths: a leaf's last token predicts nothing
    assert layout([everything(tree)]).forwarded_tokens == len({tuple(p[:n]) for p in paths for n in range(1, len(p))})


def test_what_is_not_trained_is_not_forwarded():
    tree = full_tree([2, 2], prompt=5, segment=3)
    masks = [np.zeros(len(n.token_ids), bool) for n in tree.nodes]
    masks[tree.children[2][1]][-1] = True
    assert layout([TrainedSegments(tree, tuple(masks))]).forwarded_tokens == 5 + 3 + 2


def test_a_one_token_segment_is_predicted_by_its_parent(policy):
    tree = RolloutTree("q", (Node.prompt([3, 4]), Node.sampled(0, [5], [-1], FinishReason.STOP)))
    batch = layout([everything(tree)])
    assert batch.forwarded_tokens == 2
    expected = torch.log_softmax(policy(input_ids=torch.tensor([[3, 4]])).logits[0, -1], -1)[5]
    found = TreePolicy(policy, "rows")(batch, 1.0)[0]
    assert float(found[0].detach()) == pytest.approx(float(expected.detach()), abs=1e-6)


def test_a_prompt_of_one_token_alone(policy):
    tree = RolloutTree("q", (Node.prompt([3]), Node.sampled(0, [5], [-1], FinishReason.STOP)))
    assert_equal_to_flat(policy, [everything(tree)])


def test_nothing_to_train_is_an_empty_batch(policy):
    tree = full_tree([2], prompt=5, segment=3)
    batch = layout([TrainedSegments(tree, tuple(np.zeros(len(n.token_ids), bool) for n in tree.nodes))])
    logprobs, entropies = TreePolicy(policy)(batch, 1.0, True)
    assert logprobs.shape == entropies.shape == (0,) and layout([]).forwarded_tokens == 0


def test_without_a_tree_the_model_is_as_before(policy):
    ids = torch.tensor([[3, 4, 5, 6]])
    before = policy(input_ids=ids).logits
    TreePolicy(policy)
    assert torch.equal(policy(input_ids=ids).logits, before)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_decoding_attention_is_sdpa(kv_heads):
    torch.manual_seed(0)
    query, key, value = torch.randn(5, 4, 1, 8), torch.randn(5, kv_heads, 7, 8), torch.randn(5, kv_heads, 7, 8)
    visible = torch.rand(5, 1, 1, 7) < 0.6
    visible[..., 0] = True
    bias = torch.zeros(5, 1, 1, 7).masked_fill(~visible, float("-inf"))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, enable_gqa=True)
    for mask in (visible, bias):
        found, _ = attention(torch.nn.Module(), query, key, value, mask)
        assert torch.allclose(found.transpose(1, 2), expected, atol=1e-6)
