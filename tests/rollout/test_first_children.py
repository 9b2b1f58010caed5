"""Trees whose nodes get further children only where the first ones' rewards differ."""

import numpy as np
import pytest

from spo_core.config import CreditParams, RolloutParams, load_params
from spo_core.credit import assign_credit
from spo_core.errors import ConfigError
from tests.conftest import ROOT
from tests.rollout.test_sampler import GRPO, TREE, grow

CREDIT = CreditParams.model_validate(TREE | {"advantage": {"type": "difference"}, "mask": {"type": "all"}})


def grade(ended):
    """A reward that any token decides, and that beginnings share now and then."""
    return [(float(ids[: 1 + len(ids) // 2].sum() % 3 > 0), "") for _, ids, _ in ended]


def grown(policy, branch_factors, first, credit=TREE, **more):
    return grow(policy, credit, branch_factors, known={"grade": grade}, first_children=first, **more)


def shape(tree):
    """The tree as nested lists of token ids, reward and children."""

    def below(index):
        node = tree.nodes[index]
        return (node.token_ids.tolist(), str(node.reward), [below(c) for c in tree.children[index]])

    return below(0)


def pruned(whole, first):
    """The same from a tree that was sampled whole, with every node's later children left out where the first agree."""
    ids, reward, children = whole
    if not children:
        return whole, {reward}
    kept = [pruned(child, first) for child in children[:first]]
    if len({r for _, own in kept for r in own}) > 1:
        kept += [pruned(child, first) for child in children[first:]]
    return (ids, reward, [child for child, _ in kept]), {r for _, own in kept for r in own}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("branch_factors", "first", "credit"),
    [((4, 3, 3), 2, TREE), ((4, 4, 2), 3, TREE), ((2, 3, 3), 2, TREE), ((8,), 2, GRPO), ((2, 2, 2, 3), 2, TREE)],
)
def test_it_is_the_whole_tree_without_what_nobody_asked_for(policy, branch_factors, first, credit):
    tokens = np.zeros(2, int)
    for seed in range(4):
        more = {"seed": seed, "context_length": 24, "stop_ids": (2, 9)}
        whole = grown(policy, branch_factors, None, credit, **more)
        trees = grown(policy, branch_factors, first, credit, **more)
        assert [shape(tree) for tree in trees] == [pruned(shape(tree), first)[0] for tree in whole]
        tokens += [sum(tree.generated_tokens for tree in found) for found in (whole, trees)]
    assert tokens[1] < tokens[0]


@pytest.mark.slow
def test_it_does_not_depend_on_how_much_is_decoded_at_once(policy):
    found = [[shape(t) for t in grown(policy, (5, 3, 3), 2, concurrency=c)] for c in (1, 3, 50)]
    assert found[0] == found[1] == found[2]


def test_agreeing_siblings_have_no_advantage_and_the_others_all_their_children(policy):
    ended = widened = 0
    for seed in range(3):
        for tree in grown(policy, (4, 4, 4), 2, seed=seed):
            advantages = assign_credit(tree, CREDIT).advantages
            for children in tree.children:
                if len(children) == 2:
                    ended += 1
                    assert not any(advantages[child].any() for child in children)
                elif children:
                    widened += 1
                    assert len(children) == 4
    assert ended > 10 and widened > 10


def test_what_does_not_go_together_is_refused(policy):
    with pytest.raises(ConfigError, match="monte_carlo samples"):
        load_params(ROOT, None, ("credit.value={type: monte_carlo}", "credit.advantage={type: difference}"))
    for preset, shape in ((None, "rollout.branch_factors=[8]"), ("grpo", "rollout.first_children=2")):
        with pytest.raises(ConfigError, match=r"first_children is for trees.*set it to null"):
            load_params(ROOT, preset, (shape,))
    with pytest.raises(ConfigError, match="leaves no child"):
        load_params(ROOT, None, ("rollout.first_children=4",))
    with pytest.raises(ConfigError, match="not told how to grade"):
        grow(policy, TREE, (3, 3), first_children=2)


def test_one_child_at_first_would_agree_with_itself():
    with pytest.raises(ValueError, match="first_children"):
        RolloutParams(questions=1, branch_factors=(4,), context_length=8, first_children=1)
