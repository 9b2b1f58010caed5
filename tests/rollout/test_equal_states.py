"""Equal states of a question share one fan of value rollouts, whichever response comes to them first."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_core.config import CreditParams, RolloutParams
from spo_core.credit.value import monte_carlo
from spo_core.rollout.engine import Completion
from spo_core.rollout.sampler import Prompt, Sampler
from tests.conftest import with_rewards
from tests.rollout.test_sampler import fan, fans, flat, grow, spines

STOP = 2
PROBABILITIES = {5: 0.85, 6: 0.1, STOP: 0.05}
PROMPTS = [Prompt("a", (3, 4)), Prompt("b", (3, 7))]
PARTITIONS = [
    {"type": "cutpoints", "interval": 2},
    {"type": "equal_parts", "parts": 3},  # equal states may lie at different depths
    {"type": "delimiter", "text": "5"},
]


class Disordered:
    """An engine that finishes requests in a random order, one a step; what it samples depends on the seed alone.

    It remembers when it was asked for what, and holds its user to the rules about caches.
    """

    gives_entropies = False

    def __init__(self, order: int) -> None:
        self.order = np.random.default_rng(order)
        self.queue, self.kept, self.seeds, self.steps = [], {}, [], 0
        self.asked = {}  # tokens up to a state -> value rollouts asked for after how many steps
        self.finished = {}  # tokens of a response, its prompt included -> steps until the first of them had finished

    @property
    def busy(self):
        return bool(self.queue)

    def submit(self, requests):
        for request in requests:
            assert request.parent is None or np.array_equal(
                self.kept[request.parent][: len(request.token_ids)], request.token_ids
            )
            self.queue.append(request)
            self.seeds.append(request.seed)
            if not request.keep:
                self.asked.setdefault(request.token_ids.tobytes(), Counter())[self.steps] += 1

    def step(self):
        self.steps += 1
        request = self.queue.pop(int(self.order.integers(len(self.queue))))
        rng = np.random.default_rng(request.seed)
        ids = rng.choice(list(PROBABILITIES), request.max_tokens, p=list(PROBABILITIES.values())).astype(np.int32)
        stopped = STOP in ids
        ids = ids[: ids.tolist().index(STOP) + 1] if stopped else ids
        if request.keep:
            self.kept[request.request_id] = np.concatenate([request.token_ids, ids])
            self.finished.setdefault(self.kept[request.request_id].tobytes(), self.steps)
        logprobs = np.log([PROBABILITIES[i] for i in ids.tolist()]).astype(np.float32)
        return [Completion(request.request_id, ids, logprobs, stopped)]

    def release(self, request_id):
        self.kept.pop(request_id, None)


def sampled(order, partition, prompt="cut", seed=1):
    engine = Disordered(order)
    credit = {
        "partition": partition,
        "value": {"type": "monte_carlo", "rollouts": 3, "prompt": prompt},
        "advantage": {"type": "difference"},
        "mask": {"type": "all"},
    }
    params = RolloutParams(questions=2, branch_factors=(8,), context_length=16)
    texts = {"token_texts": lambda ids: [str(i) for i in ids]} if partition["type"] == "delimiter" else {}
    credit = CreditParams.model_validate(credit)
    sampler = Sampler(engine, params, credit, seed=seed, iteration=1, version=0, **texts)
    trees = sampler.grow(PROMPTS)
    assert not engine.kept, "a cache was kept after its last child"
    return trees, engine


each_partition = pytest.mark.parametrize("partition", PARTITIONS, ids=lambda p: p["type"])
some = settings(max_examples=20, deadline=None)


@each_partition
@some
@given(order=st.integers(0, 2**32), prompt=st.sampled_from(["cut", "always"]), seed=st.integers(0, 5))
def test_one_fan_a_state_at_the_first_node_that_ends_in_it(partition, order, prompt, seed):
    shared = 0
    for tree in sampled(order, partition, prompt, seed)[0]:
        first = {}
        for node, children in enumerate(tree.children):
            if children and (node or fan(tree, 0)):
                state = tree.completion(node).tobytes()
                assert len(fan(tree, node)) == (0 if state in first else 3)
                shared += state in first
                first.setdefault(state, node)
        assert sum(not n.trainable for n in tree.nodes[1:]) == 3 * len(first)
    assert shared, "responses of this test should have equal states"


@each_partition
@some
@given(order=st.integers(0, 2**32), prompt=st.sampled_from(["cut", "always"]), seed=st.integers(0, 5))
def test_trees_do_not_depend_on_the_order_in_which_requests_finish(partition, order, prompt, seed):
    assert flat(sampled(order, partition, prompt, seed)[0]) == flat(sampled(0, partition, prompt, seed)[0])


@each_partition
@some
@given(order=st.integers(0, 2**32))
def test_no_two_requests_share_a_seed_not_even_for_equal_states_of_two_questions(partition, order):
    seeds = sampled(order, partition)[1].seeds
    assert len(set(seeds)) == len(seeds)


@each_partition
@some
@given(order=st.integers(0, 2**32))
def test_a_fan_is_asked_for_when_the_first_response_with_its_state_has_finished(partition, order):
    trees, engine = sampled(order, partition)
    earliest = {}
    for tree in trees:
        prompt = tree.nodes[0].token_ids.tobytes()
        for nodes, tokens, _ in spines(tree):
            finished = engine.finished[prompt + tokens.tobytes()]
            for node in nodes[:-1]:
                state = prompt + tree.completion(node).tobytes()
                earliest[state] = min(finished, earliest.get(state, finished))
    assert earliest and all(engine.asked[state] == {steps: 3} for state, steps in earliest.items())


@each_partition
def test_nodes_have_the_value_of_their_states_fan(partition):
    rng = np.random.default_rng(0)
    for tree in sampled(4, partition)[0]:
        graded = with_rewards(tree, {leaf: float(rng.integers(2)) for leaf in tree.leaves})
        values, rollouts = monte_carlo(graded), fans(graded)
        for nodes, _, _ in spines(graded):
            for node in nodes[:-1]:
                rewards = [graded.nodes[i].reward for i in rollouts[graded.completion(node).tobytes()]]
                assert len(rewards) == 3 and values[node] == pytest.approx(sum(rewards) / 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "partition", [{"type": "cutpoints", "prob_threshold": 0.99}, {"type": "equal_parts", "parts": 4}]
)
def test_a_real_engine_gives_the_same_trees_however_much_it_decodes_at_once(policy, partition):
    """The policy is peaked, so that most responses are equal for a while."""
    policy.lm_head.weight.data.mul_(20.0)
    credit = {"partition": partition, "value": {"type": "monte_carlo", "rollouts": 2}}
    first, *others = (grow(policy, credit, (8,), concurrency=n) for n in (1, 5, 64))
    assert all(flat(trees) == flat(first) for trees in others)
    for tree in first:
        ends = [tree.completion(node).tobytes() for nodes, _, _ in spines(tree) for node in nodes[:-1]]
        assert sum(bool(fan(tree, i)) for i in range(1, len(tree.nodes))) == len(set(ends)) < len(ends)
