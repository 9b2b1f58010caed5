"""The critic against plain sequences and naive formulas; it learns what a loop over counts knows, and resumes."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from spo_core.config import Critic as CriticParams
from spo_core.config import LearnParams
from spo_core.credit.value import tree_mean
from spo_core.errors import TrainingError
from spo_core.learn.backend import TorchBackend
from spo_core.learn.critic import Critic, own_model, quality, state_returns
from spo_core.learn.head import trunk
from spo_core.tree import FinishReason, Node, RolloutTree
from tests.conftest import random_tree

LEARN = {"learning_rate": 1e-3, "max_tokens_per_forward": 60}


def make(policy, probabilities: bool = True, learn: dict | None = None, **options) -> Critic:
    params = CriticParams.model_validate({"type": "critic", "learning_rate": 3e-3} | options)
    chosen = LearnParams.model_validate(LEARN | (learn or {}))
    backend = TorchBackend(policy, None, chosen)
    return Critic(own_model(policy, params), backend, params, chosen, probabilities=probabilities, seed=0)


def trees_of(seed: int, count: int = 6, iteration: int = 1):
    rng = np.random.default_rng(seed)
    found = [random_tree(rng, depth=3, widest=3, longest=5) for _ in range(count)]
    for tree in found:
        object.__setattr__(tree, "iteration", iteration)
    return found


def randomised(critic: Critic) -> Critic:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in critic.trained["head"].parameters():
            parameter.normal_(0, 0.5)
    return critic


@pytest.mark.parametrize("network", ["copy", "head"])
def test_values_are_those_of_plain_sequences(policy, network):
    """One forward pass of the trunk a leaf's path; a token's value is read at the position before it."""
    critic = randomised(make(policy, network=network))
    trees, states = trees_of(1), critic.own or critic.backend.policy
    for tree, found in zip(trees, critic.values(trees), strict=True):
        for leaf in tree.leaves:
            path = tree.path(leaf)
            ids = torch.from_numpy(np.concatenate([tree.nodes[i].token_ids for i in path]).astype(np.int64))
            with torch.no_grad():
                hidden = trunk(states.model)(input_ids=ids[None]).last_hidden_state[0]
                plain = critic.trained["head"](hidden)[:, 0].sigmoid().double().numpy()
            ours = np.concatenate([found[i] for i in path[1:]])
            prompt = len(tree.nodes[0].token_ids)
            assert ours == pytest.approx(plain[prompt - 1 : -1], abs=1e-5)


def test_returns_are_means_of_the_leaves_below_the_state_before_a_token():
    for tree in trees_of(2):
        values, found = tree_mean(tree), state_returns(tree)
        for index, node in enumerate(tree.nodes[1:], start=1):
            assert found[index].tolist() == [values[node.parent], *[values[index]] * (len(node.token_ids) - 1)]


@pytest.mark.parametrize(("probabilities", "clip"), [(True, None), (False, None), (False, 0.2)])
def test_losses_are_their_formulas(policy, probabilities, clip):
    options = {"clip": clip, "loss": "squared"} if clip else {}
    critic = make(policy, probabilities=probabilities, **options)
    rng = np.random.default_rng(0)
    outputs, returns, before = rng.normal(size=50), rng.random(50), rng.normal(size=50)
    as_tensors = (torch.tensor(x, dtype=torch.float64, requires_grad=i == 0) for i, x in enumerate((outputs, returns)))
    x, target = as_tensors
    losses = critic.token_losses(x, target, torch.tensor(before) if clip else None)
    losses.sum().backward()
    for i in range(50):
        o, g, b = outputs[i], returns[i], before[i]
        if probabilities:
            p = 1 / (1 + math.exp(-o))
            loss, gradient = -g * math.log(p) - (1 - g) * math.log(1 - p), p - g
        else:
            loss, gradient = (o - g) ** 2 / 2, o - g
            if clip:
                kept = b + min(max(o - b, -clip), clip)
                if (kept - g) ** 2 > (o - g) ** 2:
                    loss, gradient = (kept - g) ** 2 / 2, 0.0
        assert float(losses[i].detach()) == pytest.approx(loss, abs=1e-9)
        assert float(x.grad[i]) == pytest.approx(gradient, abs=1e-9)


def test_a_step_is_one_of_adamw_on_the_mean_over_all_tokens_however_trees_are_divided(policy):
    """Against a gradient through plain sequences, a token at a time."""
    critic = randomised(make(policy, optimizer_steps=1, epochs=1))
    naive = copy.deepcopy(critic.trained)
    trees = trees_of(3, count=3)
    total = sum(tree.generated_tokens for tree in trees)
    losses = []
    for tree in trees:
        returns = state_returns(tree)
        for index, node in enumerate(tree.nodes[1:], start=1):
            ids = np.concatenate([tree.nodes[i].token_ids for i in tree.path(index)]).astype(np.int64)
            hidden = naive["trunk"](input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0]
            count = len(node.token_ids)
            outputs = naive["head"](hidden)[-count - 1 : -1, 0]
            target = torch.from_numpy(returns[index]).float()
            losses.append((torch.nn.functional.softplus(outputs) - target * outputs).sum() / total)
    optimizer = torch.optim.AdamW(naive.parameters(), lr=3e-3, betas=critic.learn.betas, weight_decay=0.0)
    sum(losses).backward()
    torch.nn.utils.clip_grad_norm_(naive.parameters(), 1.0)
    optimizer.step()
    found = critic.update(trees, 1)
    assert found["loss"] == pytest.approx(float(sum(losses).detach()), rel=1e-5)
    for name, parameter in naive.named_parameters():
        assert torch.allclose(critic.trained.get_parameter(name), parameter, atol=2e-4), name


def learnable(seed: int, iteration: int = 1, count: int = 12) -> list[RolloutTree]:
    """Trees in which the reward is 1 where the response begins with token 5 and 0 where it begins with 6."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        nodes = [Node.prompt([4, 3])]
        for first in rng.integers(5, 7, 2).tolist():
            nodes.append(Node.sampled(0, [first, *rng.integers(7, 20, 2)], [-1.0] * 3, FinishReason.SEGMENT))
            parent = len(nodes) - 1
            for _ in range(2):
                ids = rng.integers(7, 20, 2)
                nodes.append(Node.sampled(parent, ids, [-1.0] * 2, FinishReason.STOP, reward=float(first == 5)))
        found.append(RolloutTree("q", tuple(nodes), 0, iteration))
    return found


@pytest.mark.parametrize(("network", "dtype"), [("copy", "float32"), ("copy", "bfloat16"), ("head", "float32")])
def test_it_learns_and_the_policy_stays_as_it_is(policy, network, dtype):
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    critic = make(policy, network=network, learn={"dtype": dtype, "max_tokens_per_forward": 400}, epochs=4)
    unseen = learnable(100)
    first = quality(unseen, critic.values(unseen))
    assert first["explained_variance"] <= 0, "equal values explain nothing"
    for iteration in (1, 2, 3):
        critic.update(learnable(iteration, iteration), iteration)
    last = quality(unseen, critic.values(unseen))
    assert last["explained_variance"] > 0.5 and last["calibration_error"] < 0.2
    assert all(torch.equal(v, before[k]) for k, v in policy.state_dict().items())
    assert all(p.grad is None for p in policy.parameters())


@pytest.mark.parametrize("network", ["copy", "head"])
def test_saved_and_loaded_it_goes_on_to_the_same_bits(policy, tmp_path, network):
    learn = {"max_tokens_per_forward": 400}
    options = {"learn": learn, "network": network, "loss": "squared", "clip": 0.2, "replay": 2}
    straight = make(policy, **options)
    for iteration in (1, 2):
        straight.update(learnable(iteration, iteration), iteration)
    straight.save(tmp_path)
    resumed = make(policy, **options)
    resumed.load(tmp_path)
    for critic in (straight, resumed):
        critic.update(learnable(3, 3), 3)
    assert {tree.iteration for tree in resumed.trees} == {2, 3}, "trees of the last two iterations are replayed"
    both = zip(straight.trained.parameters(), resumed.trained.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in both)
    assert load_file(tmp_path / "critic.safetensors").keys() == dict(straight.trained.named_parameters()).keys()


def test_quality_is_its_formulas():
    trees = learnable(7)
    rng = np.random.default_rng(0)
    before = [tuple(rng.random(len(node.token_ids)) for node in tree.nodes) for tree in trees]
    pairs = [
        (value, g)
        for tree, own in zip(trees, before, strict=True)
        for values, returns in zip(own[1:], state_returns(tree)[1:], strict=True)
        for value, g in zip(values, returns, strict=True)
    ]
    mean = sum(g for _, g in pairs) / len(pairs)
    explained = 1 - sum((g - v) ** 2 for v, g in pairs) / sum((g - mean) ** 2 for _, g in pairs)
    assert quality(trees, before)["explained_variance"] == pytest.approx(explained)
    perfect = [state_returns(tree) for tree in trees]
    found = quality(trees, perfect)
    assert found["explained_variance"] == 1 and found["calibration_error"] == 0 and found["error_quarter_1"] == 0


def test_values_that_are_not_finite_stop_the_run(policy):
    critic = make(policy)
    with torch.no_grad():
        critic.trained["head"][-1].bias.fill_(math.nan)
    with pytest.raises(TrainingError, match=r"not finite; lower credit\.value\.learning_rate"):
        critic.values(trees_of(1))
