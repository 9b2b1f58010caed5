"""DPO-positive and DVO: by hand, against the formula on one padded sequence a segment, and what restarts with them."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from spo_core.config import CreditParams, DirectValue, DPOPositive, LearnParams
from spo_core.credit import assign_credit
from spo_core.errors import TrainingError
from spo_core.learn.sequences import direct_value, dpo_positive, preferences
from spo_core.learn.tree_batch import TrainedSegments
from tests.conftest import random_tree, with_rewards
from tests.learn.naive import flat_logprobs
from tests.learn.test_trainer import DEFAULTS, capture_gradients, distance, make_trainer, of_policy, relative

CREDIT = CreditParams(
    partition={"type": "fixed_tokens", "tokens": 4},
    value={"type": "tree_mean"},
    advantage={"type": "difference"},
    mask={"type": "all"},
)
KEPT = CreditParams.model_validate(CREDIT.model_dump() | {"advantage": {"type": "rejection"}})
PAIRS = {"type": "dpo_positive", "beta": 0.2, "penalty": 3.0, "margin": 0.4, "pairs": None}
VALUES = {"type": "dvo", "beta": 0.3, "cap": 1.2}
KEEP = {"zero_advantage": "keep"}


def sample(count: int = 5, seed: int = 0, credit: CreditParams = CREDIT):
    rng = np.random.default_rng(seed)
    trees = [random_tree(rng, depth=3, widest=3, longest=5) for _ in range(count)]
    return [(tree, assign_credit(tree, credit)) for tree in trees]


def shaken(policy, factor: float = 0.9):
    other = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(factor)
    return other


def trainer_of(policy, reference, **options):
    """A trainer whose reference policy is another one."""
    trainer = make_trainer(policy, **KEEP, **options)
    frozen = make_trainer(reference, **KEEP, **options).backend
    trainer.backend.reference = frozen.policy
    return trainer


def test_a_pair_by_hand():
    """log-ratios -0.5 and -0.5 - ln 2: the accepted one gained ln 2 and lost 0.5 nats to the reference policy."""
    policy = torch.tensor([[-2.0, -3.0 - math.log(2)]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[-1.5, -2.5]], dtype=torch.float64)
    params = DPOPositive(type="dpo_positive", beta=0.3, penalty=50.0)
    loss, metrics = dpo_positive(policy, reference, params)
    z = math.log(2) - 50 * 0.5
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.3 * z)), rel=1e-12)
    loss.sum().backward()
    slope = -0.3 / (1 + math.exp(0.3 * z))
    assert policy.grad.tolist() == [pytest.approx([slope * 51, -slope], rel=1e-12)]
    assert metrics["preferred_share"].tolist() == [1.0]
    assert float(metrics["preference_margin"]) == pytest.approx(math.log(2))


def test_what_rounding_says_of_an_accepted_sequence_changes_no_slope():
    """A policy that is the reference policy has the gradient of one step, however its sequences were packed."""
    rng = np.random.default_rng(0)
    reference = torch.from_numpy(-rng.exponential(20, (50, 2)))
    slopes = []
    for noise in (0.0, 1e-6, -1e-5):
        policy = (reference + noise * torch.from_numpy(rng.random((50, 2)))).requires_grad_()
        dpo_positive(policy, reference, DPOPositive(type="dpo_positive", beta=0.3, penalty=50.0))[0].sum().backward()
        slopes.append(policy.grad)
    assert torch.equal(slopes[0], torch.tensor([[-0.15 * 26, 0.15]], dtype=torch.float64).expand(50, 2))
    assert torch.equal(slopes[0], slopes[1]) and torch.equal(slopes[0], slopes[2])


def test_a_value_by_hand():
    """log(policy / reference) = 0.5, beta times it 0.05, 0.45 short of A = 0.5; the weight is e^0.2."""
    policy = torch.tensor([-2.0], dtype=torch.float64, requires_grad=True)
    given = (torch.tensor([x], dtype=torch.float64) for x in (-2.5, -2.2, 0.5))
    loss, _ = direct_value(policy, *given, DirectValue(type="dvo", beta=0.1, cap=10.0))
    assert loss.item() == pytest.approx(math.exp(0.2) * 0.45**2 / 2, rel=1e-12)
    loss.sum().backward()
    assert float(policy.grad) == pytest.approx(-math.exp(0.2) * 0.1 * 0.45, rel=1e-12)
    capped, _ = direct_value(
        policy.detach(), *(torch.tensor([x]).double() for x in (-2.5, -9.0, 0.5)), DirectValue(type="dvo")
    )
    assert float(capped) == pytest.approx(10 * 0.45**2 / 2, rel=1e-12)


def naive_loss(policy, reference, pairs, loss) -> torch.Tensor:
    """The loss of one step over all trees, each segment a padded sequence of its own."""

    def logprob(model, tree, node):
        only = tuple(np.full(len(n.token_ids), i == node) for i, n in enumerate(tree.nodes))
        return flat_logprobs(model, [TrainedSegments(tree, only)], 1.0)[0].double().sum()

    terms = []
    for tree, credit in pairs:
        nodes = [i for i, n in enumerate(tree.nodes) if n.trainable]
        now = {i: logprob(policy, tree, i) for i in nodes}
        first = {i: logprob(reference, tree, i).detach() for i in nodes}
        if loss["type"] == "dvo":
            for i in nodes:
                weight = min(math.exp(float(now[i]) - float(tree.nodes[i].logprobs.sum())), loss["cap"])
                advantage = credit.values[i] - credit.values[tree.nodes[i].parent]
                terms.append(weight * (loss["beta"] * (now[i] - first[i]) - advantage) ** 2 / 2)
            continue
        for a in nodes:
            for b in nodes:
                alike = tree.nodes[a].parent == tree.nodes[b].parent
                if alike and credit.values[a] - credit.values[b] >= loss["margin"] - 1e-9:
                    gained = (now[a] - first[a]) - (now[b] - first[b])
                    z = gained - loss["penalty"] * torch.clamp(first[a] - now[a], min=0)
                    terms.append(-torch.nn.functional.logsigmoid(loss["beta"] * z))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("loss", [PAIRS, VALUES], ids=lambda loss: loss["type"])
@pytest.mark.parametrize("budget", [1, 40, 1000])
def test_the_gradient_is_that_of_the_loss_of_whole_sequences(policy, loss, budget):
    """However the trees of a step are divided among forward passes."""
    pairs, reference = of_policy(policy, sample()), shaken(policy)
    trainer = trainer_of(policy, reference, loss=loss, max_tokens_per_forward=budget)
    gradients = capture_gradients(trainer)
    metrics = trainer.train_iteration(pairs, iteration=1)
    model = copy.deepcopy(policy)
    expected = naive_loss(model, reference, pairs, loss)
    expected.backward()
    assert relative([p.grad for p in model.parameters()], gradients[0]) <= 1e-4
    assert metrics["policy_loss"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("loss", [PAIRS, VALUES], ids=lambda loss: loss["type"])
def test_every_pair_or_sequence_is_trained_once_an_epoch(policy, loss):
    """Steps of one size: metrics of three epochs of two steps at a learning rate of nearly 0 are those of one step."""
    pairs = of_policy(policy, sample(count=6))
    still = {"learning_rate": 1e-12, "loss": loss}
    once = trainer_of(policy, shaken(policy), **still).train_iteration(pairs, iteration=1)
    often = trainer_of(policy, shaken(policy), **still, epochs=3, optimizer_steps=2).train_iteration(pairs, iteration=1)
    assert often["optimizer_steps"] == 6
    for name in ("policy_loss", "preferred_share", "preference_margin", "sequence_log_ratio", "sequence_weight"):
        if name in once:
            assert often[name] == pytest.approx(once[name], rel=1e-5)


def test_pairs_of_a_question_are_limited_and_their_draw_repeats(policy):
    pairs = of_policy(policy, sample(count=1, seed=4))
    all_of_them = len(preferences(*pairs[0], [i for i, n in enumerate(pairs[0][0].nodes) if n.trainable], 0.4))
    assert all_of_them > 2
    runs = []
    for _ in range(2):
        trainer = trainer_of(policy, shaken(policy), loss=PAIRS | {"pairs": 2}, optimizer_steps=9)
        assert trainer.train_iteration(pairs, iteration=3)["optimizer_steps"] == 2
        runs.append(trainer.backend.model)
    assert distance(*runs) == 0


def test_equal_siblings_are_no_pair_and_nothing_is_trained(policy):
    tree, _ = sample(count=1)[0]
    equal = with_rewards(tree, dict.fromkeys(tree.leaves, 1.0))
    trainer = trainer_of(policy, policy, loss=PAIRS)
    assert trainer.train_iteration([(equal, assign_credit(equal, CREDIT))], iteration=1)["skipped"] == 1
    assert distance(trainer.backend.model, policy) == 0


def test_a_partly_masked_sequence_is_refused(policy):
    masked = CREDIT.model_dump() | {"mask": {"type": "low_probability", "threshold": 0.6}}
    pairs = sample(credit=CreditParams.model_validate(masked))
    with pytest.raises(TrainingError, match=r"needs one advantage for all of a segment's tokens, and credit\.mask all"):
        trainer_of(policy, policy, loss=VALUES, max_logprob_gap=1e9).train_iteration(pairs, iteration=1)


def test_likelihood_is_the_mean_of_negative_log_probs(policy):
    """Of kept responses alone; a segment counts as often as kept responses go through it."""
    pairs = of_policy(policy, sample(credit=KEPT))
    trainer = make_trainer(policy, loss={"type": "likelihood"})
    gradients = capture_gradients(trainer)
    trainer.train_iteration(pairs, iteration=1)
    model, total, tokens = copy.deepcopy(policy), torch.zeros(()), 0
    for tree, credit in pairs:
        for leaf in (i for i in tree.leaves if tree.nodes[i].reward >= 1 and credit.advantages[i].any()):
            path = set(tree.path(leaf)[1:])
            only = tuple(np.full(len(n.token_ids), i in path) for i, n in enumerate(tree.nodes))
            total = total - flat_logprobs(model, [TrainedSegments(tree, only)], 1.0)[0].sum()
        tokens += sum(len(n.token_ids) for n, a in zip(tree.nodes, credit.advantages, strict=True) if a.any())
    (total / tokens).backward()
    assert relative([p.grad for p in model.parameters()], gradients[0]) <= 1e-5


@pytest.mark.parametrize("loss", [{"type": "likelihood"}, PAIRS], ids=lambda loss: loss["type"])
def test_restarted_training_knows_nothing_of_iterations_before(policy, loss, tmp_path):
    """Iteration 2 after iteration 1, and after a resumption, and alone: the same weights, bit for bit."""
    credit = KEPT if loss["type"] == "likelihood" else CREDIT
    first, second = (of_policy(policy, sample(seed=seed, credit=credit)) for seed in (1, 2))
    second = [(replace(tree, policy_version=3), credit) for tree, credit in second]  # sampled by what iteration 1 made
    options = {"loss": loss, "restart": True, "optimizer_steps": 3, "warmup_steps": 2, "max_logprob_gap": 1e-9}
    trainer = trainer_of(policy, policy, **options)
    trainer.train_iteration(first, iteration=1)
    trainer.save(tmp_path)
    resumed = trainer_of(policy, policy, **options)
    resumed.backend.model.load_state_dict(trainer.backend.model.state_dict())
    resumed.load(tmp_path)
    alone = trainer_of(policy, policy, **options)
    metrics = [t.train_iteration(second, iteration=2) for t in (trainer, resumed, alone)]
    assert "logprob_gap" not in metrics[0], "the first policy did not sample these"
    assert distance(trainer.backend.model, policy) > 0 and metrics[0] == metrics[1] == metrics[2]
    assert (
        distance(trainer.backend.model, alone.backend.model)
        == distance(resumed.backend.model, alone.backend.model)
        == 0
    )
    assert trainer.step == resumed.step == 6


def test_a_restart_that_finds_nothing_to_train_leaves_the_policy_as_it_is(policy):
    trainer = make_trainer(policy, loss={"type": "likelihood"}, restart=True)
    trainer.train_iteration(of_policy(policy, sample(credit=KEPT)), iteration=1)
    before = copy.deepcopy(trainer.backend.model)
    assert trainer.train_iteration([], iteration=2)["skipped"] == 1
    assert distance(trainer.backend.model, before) == 0


def test_only_what_compares_with_the_reference_policy_needs_one():
    needs = {"likelihood": False, "dpo_positive": True, "dvo": True, "ppo_clip": False}
    for kind, expected in needs.items():
        params = LearnParams.model_validate(DEFAULTS | KEEP | {"loss": {"type": kind}})
        assert params.needs_reference is expected
