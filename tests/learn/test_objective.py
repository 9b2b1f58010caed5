"""Normalisation, whitening and division of an optimizer step, against the published formulas written as loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_core.config import CreditParams, LearnParams, with_fidelity
from spo_core.credit import assign_credit
from spo_core.learn.objective import WeightedTree, counted_masks, episodes_of, plan_epoch, whitening
from spo_core.learn.splits import divide, forwarded_tokens, split_tree
from spo_core.learn.tree_batch import layout
from spo_core.tree import FinishReason, Node, RolloutTree
from tests.conftest import random_tree

CREDIT = CreditParams(
    partition={"type": "fixed_tokens", "tokens": 4},
    value={"type": "tree_mean"},
    advantage={"type": "difference"},
    mask={"type": "low_probability", "threshold": 0.9},
)


def learn(**options) -> LearnParams:
    return LearnParams.model_validate(with_fidelity({"learning_rate": 1e-3, "optimizer_steps": 2} | options))


def pairs_of(seed: int, count: int = 5):
    rng = np.random.default_rng(seed)
    trees = [random_tree(rng, depth=3, widest=3, longest=5) for _ in range(count)]
    return [(tree, assign_credit(tree, CREDIT)) for tree in trees]


def weights(steps, name):
    return [
        np.concatenate([w[m] for t in step for w, m in zip(getattr(t, name), t.masks, strict=True)]) for step in steps
    ]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_by_batch_every_token_of_a_step_weighs_the_same_and_all_weigh_one(seed, steps):
    pairs = pairs_of(seed)
    planned = plan_epoch(pairs, learn(optimizer_steps=steps), np.random.default_rng(0))
    for step in weights(planned, "policy_weights"):
        assert step == pytest.approx(np.full(len(step), 1 / len(step)))
    trained = sum(len(step) for step in weights(planned, "policy_weights"))
    assert trained == sum(int(m.sum()) for _, c in pairs for m in counted_masks(c, learn()))
    assert len({t.pair for step in planned for t in step}) == sum(len(step) for step in planned)


def test_kept_segments_without_advantage_count_and_are_not_forwarded():
    """Paper: the normaliser counts all tokens of the mask."""
    pairs = pairs_of(1)
    params = learn(optimizer_steps=1, zero_advantage="keep")
    (step,) = plan_epoch(pairs, params, np.random.default_rng(0))
    masked = sum(int(m.sum()) for _, c in pairs for m in c.masks)
    assert weights([step], "policy_weights")[0] == pytest.approx(1 / masked)
    assert all((a[m] != 0).all() for t in step for a, m in zip(t.advantages, t.masks, strict=True))
    with_kl = learn(optimizer_steps=1, zero_advantage="keep", kl={"type": "penalty"})
    (step,) = plan_epoch(pairs, with_kl, np.random.default_rng(0))
    assert len(weights([step], "kl_weights")[0]) == masked


def test_reference_weights_are_means_over_micro_batches_of_token_means():
    """docs/reference.md 2.1 and 2.3: sum(pg m) / sum(m) of each micro-batch, a plain mean over them; KL: mean over
    sequences of sums; advantages whitened within each micro-batch."""
    pairs = pairs_of(2)
    params = learn(optimizer_steps=1, fidelity="reference", micro_batch=3)
    (step,) = plan_epoch(pairs, params, np.random.default_rng(5))
    masks = [counted_masks(c, params) for _, c in pairs]
    episodes = [e for i, (t, _) in enumerate(pairs) for e in episodes_of(i, t, masks[i])]
    order = np.random.default_rng(5).permutation(len(episodes))
    groups = [[episodes[i] for i in order[at : at + 3]] for at in range(0, len(order), 3)]
    found = {t.pair: t for t in step}
    total = 0.0
    for group in groups:
        tokens = [(e.pair, n) for e in group for n in e.nodes]
        raw = np.concatenate([pairs[p][1].advantages[n][masks[p][n]] for p, n in tokens]).astype(np.float64)
        variance = raw.var(ddof=1) if len(raw) > 1 else 0.0
        expected = (raw - raw.mean()) / np.sqrt(variance + 1e-8)
        got = np.concatenate([found[p].advantages[n][masks[p][n]] for p, n in tokens])
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-5)
        for p, n in tokens:
            assert found[p].policy_weights[n][masks[p][n]] == pytest.approx(1 / (len(raw) * len(groups)))
            assert found[p].kl_weights[n][masks[p][n]] == pytest.approx(1 / len(episodes))
            total += float(found[p].policy_weights[n].sum())
    assert total == pytest.approx(1.0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["keep", "drop"]))
def test_by_episode_episodes_weigh_the_same_and_by_constant_tokens_do_whatever_their_number(seed, zero):
    """GRPO's 1 / (G |o|) and Dr. GRPO's 1 / (G L) (arXiv 2503.20783), written as loops over episodes."""
    pairs = pairs_of(seed)
    for name, options in (("episode", {}), ("constant", {"episode_tokens": 7})):
        params = learn(optimizer_steps=1, zero_advantage=zero, normalization=name, kl={"type": "penalty"}, **options)
        masks = [counted_masks(c, params) for _, c in pairs]
        episodes = [e for i, (t, _) in enumerate(pairs) for e in episodes_of(i, t, masks[i])]
        found = {t.pair: t for step in plan_epoch(pairs, params, np.random.default_rng(0)) for t in step}
        for e in episodes:
            tokens = sum(masks[e.pair][n].sum() for n in e.nodes)
            for n in e.nodes:
                expected = 1 / (len(episodes) * (7 if name == "constant" else tokens))
                assert found[e.pair].policy_weights[n][masks[e.pair][n]] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [((0.5, 0.3), (0.997, -0.997)), ((-0.1, -0.3), (1, -1)), ((0.01, -0.9), (1, -1)), ((0.4, 0.4), (0, 0))],
)
def test_published_whitening_of_two_sequences_erases_magnitudes(raw, expected):
    """The table in docs/reference.md 2.2; 100 tokens each."""
    advantages = np.repeat(np.float32(raw), 100)
    shift, scale = whitening(advantages)
    assert ((advantages - shift) * scale)[[0, -1]] == pytest.approx(expected, abs=4e-3)


def test_whitening_of_one_token_is_zero_and_never_nan():
    shift, scale = whitening(np.float32([0.7]))
    assert (0.7 - shift) * scale == pytest.approx(0, abs=1e-3) and np.isfinite(scale)


def test_episodes_of_a_tree_are_its_edges_and_of_a_chain_its_responses():
    tree, _ = pairs_of(3)[0]
    edges = episodes_of(0, tree, [np.ones(len(n.token_ids), bool) for n in tree.nodes])
    assert {n for e in edges for n in e.nodes} == set(range(1, len(tree.nodes)))
    nodes = [Node.prompt([1])]
    for response in range(2):  # two responses of three segments, each but the last with a fan
        parent = 0
        for part in range(3):
            finish = FinishReason.STOP if part == 2 else FinishReason.SEGMENT
            nodes.append(Node.sampled(parent, [4, 5], [-1, -1], finish, reward=1.0 if part == 2 else float("nan")))
            parent = len(nodes) - 1
            if part < 2:
                nodes.append(
                    Node.sampled(parent, [9], [-1], FinishReason.STOP, trainable=False, reward=float(response))
                )
    chain = RolloutTree("q", tuple(nodes))
    masks = [np.full(len(n.token_ids), n.trainable) for n in nodes]
    assert [len(e.nodes) for e in episodes_of(0, chain, masks)] == [3, 3]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 80), st.integers(1, 3))
def test_division_trains_every_token_once_within_the_budget(seed, budget, ranks):
    pairs = pairs_of(seed)
    planned = plan_epoch(pairs, learn(optimizer_steps=1), np.random.default_rng(0))
    if not planned:
        return
    shares = divide(planned[0], budget, ranks)
    assert len(shares) == ranks and len({len(share) for share in shares}) == 1
    counts = {(t.pair, n): np.zeros(len(m), int) for t in planned[0] for n, m in enumerate(t.masks)}
    for share in shares:
        for part in share:
            batch = layout([t.segments for t in part])
            assert batch.forwarded_tokens <= sum(forwarded_tokens(t) for t in part), "equal prefixes stand once"
            ends = [n for n, mask in enumerate(part[0].masks) if mask.any()] if len(part) == 1 else []
            alone = bool(ends) and set(ends) <= set(part[0].tree.path(ends[-1]))
            assert batch.forwarded_tokens <= budget or alone, "only a single path may exceed the budget"
            for t in part:
                for n, mask in enumerate(t.masks):
                    counts[t.pair, n] += mask
    for t in planned[0]:
        for n, mask in enumerate(t.masks):
            assert np.array_equal(counts[t.pair, n], mask.astype(int))


def test_a_path_beyond_the_budget_is_one_pass_however_many_of_its_segments_are_trained():
    """Its last segment needs a pass that long in any case; each of the others in one of its own would be quadratic."""
    nodes = [Node.prompt([5, 6])]
    for index in range(40):
        end = FinishReason.SEGMENT if index < 39 else FinishReason.STOP
        nodes.append(Node.sampled(index, [3, 4, 5], [-0.5] * 3, end, reward=1.0 if index == 39 else np.nan))
    tree = RolloutTree("q", tuple(nodes))
    masks = tuple(np.full(len(n.token_ids), i > 0) for i, n in enumerate(nodes))
    zeros = tuple(np.zeros(len(n.token_ids), np.float32) for n in nodes)
    pieces = split_tree(WeightedTree(0, tree, masks, zeros, zeros, zeros), 50)
    assert sum(map(forwarded_tokens, pieces)) == forwarded_tokens(pieces[-1]) == 2 + 3 * 40 - 1
    batch = layout([p.segments for p in pieces])
    assert batch.forwarded_tokens == 2 + 3 * 40 - 1 and int(batch.last.max()) == 0, "one stretch without a branch"


def test_a_split_tree_repeats_ancestors_only():
    pairs = pairs_of(7, count=1)
    ((tree,),) = plan_epoch(pairs, learn(optimizer_steps=1), np.random.default_rng(0))
    pieces = split_tree(tree, 20)
    assert len(pieces) > 1
    longest = max(len(tree.tree.nodes[0].token_ids) + len(tree.tree.completion(leaf)) for leaf in tree.tree.leaves)
    assert sum(map(forwarded_tokens, pieces)) <= forwarded_tokens(tree) + (len(pieces) - 1) * longest
