"""How far engine and trainer are apart: over all sampled tokens, without a bit of the gradient, within rounding."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from spo_core.config import CreditParams, LearnParams, load_params
from spo_core.credit import assign_credit
from spo_core.credit.mask import is_low
from spo_core.errors import TrainingError
from spo_core.learn import trainer as module
from spo_core.learn.backend import TorchBackend
from spo_core.learn.tree_batch import TrainedSegments, layout, needed_nodes
from spo_core.rollout.gap import LIMITS, gap_limit
from spo_core.train.steps import warn_of_gap
from spo_core.tree import FinishReason, Node, RolloutTree
from tests.conftest import ROOT
from tests.learn.naive import flat_logprobs
from tests.learn.test_trainer import make_trainer, of_policy, sample, train

TEMPERATURE = 0.6


def all_sampled(tree, nodes=None) -> TrainedSegments:
    masks = [np.full(len(n.token_ids), i > 0 and (nodes is None or bool(nodes[i]))) for i, n in enumerate(tree.nodes)]
    return TrainedSegments(tree, tuple(masks))


def with_logprobs(policy, pairs, temperature=1.0, noise=None, ids=None):
    """The pairs with the engine's log-probs: the policy's, from logits with ``noise``; ``ids`` changes what it sent."""
    engine = copy.deepcopy(policy)
    if noise is not None:
        engine.lm_head.register_forward_hook(lambda *call: noise(call[-1]))
    changed = []
    for tree, credit in pairs:
        nodes = list(tree.nodes)
        for i in range(1, len(nodes)):
            only = all_sampled(tree, np.arange(len(nodes)) == i)
            logprobs = flat_logprobs(engine, [only], temperature)[0].detach().float().numpy()
            nodes[i] = replace(nodes[i], logprobs=np.minimum(logprobs, 0))
        if ids is not None:
            nodes[1:] = [replace(n, token_ids=ids(n.token_ids)) for n in nodes[1:]]
        changed.append((replace(tree, nodes=tuple(nodes)), credit))
    return changed


@pytest.mark.parametrize("budget", [16384, 30, 1])
@pytest.mark.parametrize("zero", ["drop", "keep"])
def test_the_gap_is_the_mean_over_all_sampled_tokens_forwarded(policy, budget, zero):
    """Against one plain sequence a segment; a budget repeats ancestors, which are then measured again."""
    pairs = sample()
    _, metrics, _ = train(policy, pairs, max_tokens_per_forward=budget, zero_advantage=zero)
    total = count = 0
    for tree, credit in pairs:
        masks = [m & ((a != 0) | (zero == "keep")) for m, a in zip(credit.masks, credit.advantages, strict=True)]
        masks = [m & (a != 0) for m, a in zip(masks, credit.advantages, strict=True)]
        item = all_sampled(tree, needed_nodes(tree, masks)[0])
        for i in range(1, len(tree.nodes)):
            if item.masks[i].any():
                own, _ = flat_logprobs(policy, [all_sampled(tree, np.arange(len(tree.nodes)) == i)], 1.0)
                total += float(np.abs(own.detach().numpy() - tree.nodes[i].logprobs).sum())
                count += len(own)
    assert metrics["logprob_gap"] == pytest.approx(total / count, rel=1e-4 if budget == 16384 else 0.25)


def test_measured_tokens_are_the_others_of_what_is_forwarded():
    for tree, credit in sample(12, seed=4):
        masks = tuple(m & (a != 0) for m, a in zip(credit.masks, credit.advantages, strict=True))
        batch = layout([TrainedSegments(tree, masks)], measure=True)
        plain = layout([TrainedSegments(tree, masks)])
        assert torch.equal(batch.input_ids, plain.input_ids) and torch.equal(batch.sources, plain.sources)
        needed = needed_nodes(tree, masks)[0]
        others = {(i, t) for i in np.flatnonzero(needed) if i for t in np.flatnonzero(~masks[i])}
        assert batch.measured is not None
        found = [(node, int(t)) for _, node, tokens in batch.measured.places for t in tokens]
        assert set(found) == others and len(found) == len(others) == len(batch.measured.sources)
        for (node, t), source, target in zip(
            found, batch.measured.sources.tolist(), batch.measured.targets.tolist(), strict=True
        ):
            path = np.concatenate([tree.nodes[i].token_ids for i in tree.path(node)])
            before = path[: len(path) - len(tree.nodes[node].token_ids) + t]
            assert batch.input_ids[source] == before[-1] and batch.position_ids[source] == len(before) - 1
            assert target == tree.nodes[node].token_ids[t]


@pytest.mark.parametrize(
    "options", [{}, {"report_entropy": False, "max_tokens_per_forward": 40}, {"importance_cap": 2.0}]
)
def test_measuring_does_not_change_a_bit(policy, monkeypatch, options):
    pairs = of_policy(policy, sample())
    measured, metrics, gradients = train(policy, pairs, **options)
    monkeypatch.setattr(module, "layout", lambda items, device, measure=False: layout(items, device))
    plain, without, bits = train(policy, pairs, **options)
    assert all(torch.equal(a, b) for a, b in zip(gradients[0], bits[0], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(measured.parameters(), plain.parameters(), strict=True))
    same = metrics.keys() - {"logprob_gap"}
    assert {k: metrics[k] for k in same} == {k: without[k] for k in same}
    assert metrics["logprob_gap"] < 1e-5


def peaked(policy, top: float = 16.0):
    """As language models are: most tokens nearly certain."""
    policy = copy.deepcopy(policy)
    with torch.no_grad():
        policy.lm_head.weight.mul_(top / policy(torch.arange(3, 12)[None]).logits.abs().max())
    return policy


def drawn(policy, count: int, seed: int = 0):
    """Whole responses that the policy would sample at TEMPERATURE, with RLOO's credit and low_probability's mask."""
    credit = CreditParams(
        partition={"type": "whole"},
        value={"type": "none"},
        advantage={"type": "leave_one_out"},
        mask={"type": "low_probability", "threshold": 0.9},
    )
    torch.manual_seed(seed)
    prompts = torch.randint(3, 12, (count, 6))
    rows = prompts.repeat_interleave(4, 0)
    with torch.no_grad():
        for _ in range(40):
            chances = (policy(rows).logits[:, -1] / TEMPERATURE).softmax(-1)
            rows = torch.cat([rows, torch.multinomial(chances, 1)], 1)
        found = (policy(rows).logits / TEMPERATURE).log_softmax(-1)[:, 5:-1].gather(-1, rows[:, 6:, None])[..., 0]
    pairs = []
    for number, (prompt, responses, logprobs) in enumerate(zip(prompts, rows.split(4), found.split(4), strict=True)):
        nodes = [Node.prompt(prompt.numpy())]
        for k in range(4):
            own = np.minimum(logprobs[k].numpy(), 0)
            nodes.append(Node.sampled(0, responses[k, 6:].numpy(), own, FinishReason.STOP, reward=float(k % 2)))
        tree = RolloutTree(str(number), tuple(nodes))
        pairs.append((tree, assign_credit(tree, credit)))
    return pairs


def an_ulp(dtype: torch.dtype):
    """Noise of up to a unit in the last place in logits of 16 to 32, as of language models, and their rounding."""
    generator = torch.Generator().manual_seed(0)

    def noise(logits: torch.Tensor) -> torch.Tensor:
        logits = logits + 32 - logits.amax(-1, keepdim=True)
        unit = torch.exp2(torch.floor(torch.log2(logits.abs().clamp_min(1e-6)))) * torch.finfo(dtype).eps
        return (logits + unit * (2 * torch.rand(logits.shape, generator=generator) - 1)).to(dtype).float()

    return noise


def update(policy, pairs, dtype="float32", **options):
    params = LearnParams(learning_rate=1e-6, optimizer_steps=1, **options)
    trainer = make_trainer(policy, **params.model_dump(exclude_unset=True) | {"max_logprob_gap": LIMITS[dtype]})
    trainer.temperature = TEMPERATURE
    return trainer.train_iteration(pairs, iteration=1)


def test_a_healthy_bfloat16_engine_does_not_stop(policy):
    """Over the masked tokens alone its gap is beyond 0.05, at which every run once stopped."""
    policy = peaked(policy, 24.0)
    exact = drawn(policy, 12)
    noisy = with_logprobs(policy, exact, TEMPERATURE, an_ulp(torch.bfloat16))
    far = [
        np.abs(a.logprobs - b.logprobs)[is_low(a.logprobs, 0.9)]
        for (t, _), (u, _) in zip(exact, noisy, strict=True)
        for a, b in zip(t.nodes[1:], u.nodes[1:], strict=True)
    ]
    metrics = update(policy, noisy, "bfloat16")
    masked = float(np.concatenate(far).mean())
    assert metrics["logprob_gap"] < LIMITS["bfloat16"] / 2 and masked > 0.05


def test_the_engine_in_bfloat16_beside_a_trainer_in_float32(policy):
    """Real forwards: within the limit of bfloat16, beyond that of float32 (the wrong dtype)."""
    policy = peaked(policy)
    engine = copy.deepcopy(policy).bfloat16()
    pairs = with_logprobs(engine, drawn(policy, 12), TEMPERATURE)
    assert update(policy, pairs, "bfloat16")["logprob_gap"] < LIMITS["bfloat16"] / 4
    with pytest.raises(TrainingError, match=r"rounding explains at most 0\.002"):
        update(policy, pairs, "float32")


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("wrong", ["weights", "temperature", "ids"])
def test_what_is_no_rounding_stops_in_every_dtype(policy, wrong, dtype):
    policy = peaked(policy)
    pairs = drawn(policy, 12)
    assert update(policy, pairs, dtype)["logprob_gap"] < 1e-5
    if wrong == "weights":
        other = copy.deepcopy(policy)
        with torch.no_grad():
            for parameter in other.model.layers.parameters():
                parameter.mul_(0.8)
        pairs = with_logprobs(other, pairs, TEMPERATURE)
    elif wrong == "temperature":
        pairs = with_logprobs(policy, pairs, 1.0)
    else:
        pairs = with_logprobs(policy, pairs, TEMPERATURE, ids=lambda ids: np.roll(ids, 1))
    with pytest.raises(TrainingError, match=rf"rounding explains at most {LIMITS[dtype]} "):
        update(policy, pairs, dtype)


def test_a_gap_that_is_no_number_stops(policy):
    pairs = [(t, c) for t, c in drawn(policy, 4)]
    trainer = make_trainer(policy, max_logprob_gap=0.1)
    passed = trainer._pass
    trainer._pass = lambda *a, **k: passed(*a, **k) | {"gap": torch.tensor(float("nan")).double()}
    with pytest.raises(TrainingError, match="differ by nan"):
        trainer.train_iteration(pairs, iteration=1)


@pytest.mark.parametrize(
    ("overrides", "limit"),
    [
        ((), LIMITS["float32"]),
        (("learn.max_logprob_gap=0.07",), 0.07),
        (("rollout.engine={type: vllm, dtype: bfloat16}",), LIMITS["bfloat16"]),
        (("rollout.engine={type: vllm, dtype: float16}",), LIMITS["float16"]),
        (("rollout.engine={type: vllm, dtype: float32}", "learn.dtype=bfloat16"), LIMITS["bfloat16"]),
        (("learn.dtype=bfloat16",), LIMITS["bfloat16"]),
    ],
)
def test_the_limit_is_that_of_the_coarser_dtype(overrides, limit):
    more = ("learn.backend={type: deepspeed}",) if "learn.dtype=bfloat16" in overrides else ()
    assert gap_limit(load_params(ROOT, None, (*overrides, *more))) == limit


@pytest.mark.parametrize(("sync", "update", "said"), [(0.02, 0.0, 0), (0.03, 1e-6, 1), (1e-6, 0.03, 1), (0.1, 0.1, 1)])
def test_one_warning_an_iteration_before_the_stop(sync, update, said, caplog):
    row = {"iteration": 3, "sync/logprob_gap_mean": sync, "train/logprob_gap": update}
    with caplog.at_level(logging.WARNING, "spo_core.train.steps"):
        warn_of_gap(SimpleNamespace(max_logprob_gap=LIMITS["bfloat16"]), row)
    assert len(caplog.messages) == said
    assert all("iteration 3" in text and "0.1 (learn.max_logprob_gap) stops" in text for text in caplog.messages)


def test_the_backend_returns_measured_log_probs_behind_the_trained_ones(policy):
    tree, credit = sample(1)[0]
    batch = layout([TrainedSegments(tree, credit.masks)], measure=True)
    backend = TorchBackend(policy, None, LearnParams(learning_rate=1e-3))
    logprobs, entropies = backend.logprobs(batch, 1.0, entropy=True)
    assert batch.measured is not None and entropies is not None
    assert len(logprobs) == len(batch.sources) + len(batch.measured.sources) and len(entropies) == len(batch.sources)
