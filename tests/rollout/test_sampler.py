"""Trees as they are sampled: their shape, their tokens, their seeds, their limits."""

import numpy as np
import pytest
import torch

from spo_core.config import CreditParams, RolloutParams
from spo_core.credit.partition import cutpoints, delimiter, entropy_cuts, equal_parts
from spo_core.errors import ConfigError
from spo_core.rollout.engine import Completion
from spo_core.rollout.sampler import Prompt, Sampler
from spo_core.rollout.seeds import derive_seed
from spo_core.rollout.transformers_engine import TransformersEngine
from spo_core.tree import FinishReason

PROMPTS = [Prompt("a", (3, 4, 5)), Prompt("b", (6, 7))]
CHAIN = {"partition": {"type": "cutpoints", "interval": 2}, "value": {"type": "monte_carlo", "rollouts": 3}}
TREE = {"partition": {"type": "fixed_tokens", "tokens": 4}, "value": {"type": "tree_mean"}}
ADAPTIVE = CHAIN | {
    "value": {"type": "adaptive_monte_carlo", "min_rollouts": 2, "max_rollouts": 4, "tolerance": 0.2, "prompt": "cut"}
}
GRPO = {"partition": {"type": "whole"}, "value": {"type": "none"}, "advantage": {"type": "group_normalized"}}


def grow(
    policy, credit, branch_factors, *, seed=1, stop_ids=(2,), concurrency=7, entropies=False, known=None, **rollout
):
    params = RolloutParams(**({"questions": 2, "branch_factors": branch_factors, "context_length": 24} | rollout))
    defaults = {"advantage": {"type": "difference"}, "mask": {"type": "all"}}
    engine = TransformersEngine(
        policy,
        stop_ids=stop_ids,
        context_length=params.context_length,
        max_concurrency=concurrency,
        entropies=entropies,
    )
    credit = CreditParams.model_validate(defaults | credit)
    sampler = Sampler(engine, params, credit, seed=seed, iteration=1, version=0, **(known or {}))
    trees = sampler.grow(PROMPTS)
    assert not engine._kept and not engine._prefixes, "a cache was kept after its last child"
    assert sampler.generated_tokens == sum(t.generated_tokens for t in trees)
    return trees


def plain(policy, tree, index):
    prefix = np.concatenate([tree.nodes[i].token_ids for i in tree.path(tree.nodes[index].parent)])
    ids = torch.tensor([[*prefix.tolist(), *tree.nodes[index].token_ids.tolist()]])
    with torch.no_grad():
        logits = policy(input_ids=ids).logits[0, len(prefix) - 1 : -1].double()
    return torch.log_softmax(logits, -1).gather(-1, ids[0, len(prefix) :, None])[:, 0].numpy()


@pytest.mark.parametrize(("credit", "branch_factors"), [(TREE, (3, 2, 2)), (GRPO, (5,)), (CHAIN, (3,))])
def test_logprobs_kept_are_those_of_the_tokens_kept(policy, credit, branch_factors):
    for tree in grow(policy, credit, branch_factors):
        for index in range(1, len(tree.nodes)):
            assert tree.nodes[index].logprobs == pytest.approx(plain(policy, tree, index), abs=2e-5)


def test_a_tree_without_stops_is_full_and_its_last_depth_unbounded(policy):
    for tree, prompt in zip(grow(policy, TREE, (3, 2, 2), stop_ids=()), PROMPTS, strict=True):
        assert [tree.depths.count(d) for d in range(4)] == [1, 3, 6, 12]
        for node, depth in zip(tree.nodes[1:], tree.depths[1:], strict=True):
            assert len(node.token_ids) == (4 if depth < 3 else 24 - len(prompt.token_ids) - 8)
            assert node.finish is (FinishReason.SEGMENT if depth < 3 else FinishReason.LENGTH)


def test_a_stopped_segment_is_a_leaf_and_ends_in_the_stop_token(policy):
    trees = grow(policy, TREE, (6, 3, 3), context_length=60, stop_ids=(2, 9))
    stopped = [(t, i) for t in trees for i, n in enumerate(t.nodes) if n.finish is FinishReason.STOP]
    assert len({t.depths[i] for t, i in stopped}) > 1, "the policy of this test should stop at several depths"
    for tree, index in stopped:
        assert not tree.children[index] and tree.nodes[index].token_ids[-1] in (2, 9)


def test_a_prefix_that_fills_the_context_is_a_truncated_leaf(policy):
    """Segments of 4 after a prompt of 3 in a context of 9: the second is cut to 2 and nothing follows it."""
    tree = grow(policy, TREE, (2, 2, 2), stop_ids=(), context_length=9)[0]
    assert [tree.depths.count(d) for d in range(3)] == [1, 2, 4] and max(tree.depths) == 2
    assert {n.finish for n in tree.nodes[3:]} == {FinishReason.LENGTH}
    assert {len(n.token_ids) for n in tree.nodes[3:]} == {2}


def test_the_completion_limit_counts_all_segments_of_a_response(policy):
    for tree in grow(policy, TREE, (2, 2, 2), stop_ids=(), max_completion_tokens=10):
        assert {len(tree.completion(leaf)) for leaf in tree.leaves} == {10}


def test_a_chain_is_its_trajectories_cut_with_fans_at_the_cuts(policy):
    for tree in grow(policy, CHAIN, (3,)):
        valued = fans(tree)
        ends = [i for i in tree.leaves if tree.nodes[i].trainable]
        assert len(ends) == 3
        for end in ends:
            spine = tree.path(end)[1:]
            logprobs = np.concatenate([tree.nodes[i].logprobs for i in spine])
            cuts = cutpoints(logprobs, 0.9, 2)
            lengths = np.cumsum([len(tree.nodes[i].token_ids) for i in spine])
            assert lengths[:-1].tolist() == [c + 1 for c in cuts if c >= 0]
            for node in spine[:-1]:
                assert len(valued[tree.completion(node).tobytes()]) == 3
            assert not tree.children[end]
            if -1 in cuts:  # one value of the prompt, whichever trajectories ask for it
                assert len(valued[b""]) == 3


def test_the_same_seed_gives_the_same_trees_and_another_seed_others(policy):
    a, b, c = (grow(policy, TREE, (3, 2, 2), seed=s) for s in (1, 1, 2))
    flat = [[n.token_ids.tolist() for t in trees for n in t.nodes] for trees in (a, b, c)]
    assert flat[0] == flat[1] != flat[2]


def test_no_two_requests_share_a_seed(policy, monkeypatch):
    seen = []
    monkeypatch.setattr(TransformersEngine, "submit", _recording(TransformersEngine.submit, seen))
    for credit, branch_factors in ((TREE, (3, 2, 2)), (CHAIN, (3,))):
        seen.clear()
        grow(policy, credit, branch_factors)
        assert len(set(seen)) == len(seen) > 20


def _recording(submit, seen):
    def wrapped(engine, requests):
        requests = list(requests)
        seen.extend(r.seed for r in requests)
        submit(engine, requests)

    return wrapped


def test_a_question_that_is_drawn_twice_is_sampled_twice(policy, monkeypatch):
    """At the end of the split an iteration may hold a question of the next pass again."""
    seen = []
    monkeypatch.setattr(TransformersEngine, "submit", _recording(TransformersEngine.submit, seen))
    once = flat(grow(policy, TREE, (3, 2, 2)))
    monkeypatch.setattr("tests.rollout.test_sampler.PROMPTS", [*PROMPTS, PROMPTS[0]])
    seen.clear()
    twice = flat(grow(policy, TREE, (3, 2, 2)))
    assert twice[:2] == once and twice[2] != twice[0]
    assert len(set(seen)) == len(seen)


def test_seed_names_do_not_run_together():
    assert derive_seed(1, "a", "b") != derive_seed(1, "ab")
    assert derive_seed(1, 12) != derive_seed(11, 2) and derive_seed("1") != derive_seed(1)
    assert 0 <= derive_seed(0) < 2**63


def flat(trees):
    return [[(n.parent, n.token_ids.tolist(), n.finish, n.trainable) for n in t.nodes] for t in trees]


@pytest.mark.parametrize(("credit", "branch_factors"), [(TREE, (3, 2, 2)), (GRPO, (5,)), (CHAIN, (3,))])
def test_trees_do_not_depend_on_how_much_is_decoded_at_once(policy, credit, branch_factors):
    first, *others = (flat(grow(policy, credit, branch_factors, concurrency=n)) for n in (5, 64))
    assert all(other == first for other in others)


def spines(tree):
    """(node, tokens, cuts) of every response; a cut is the number of tokens up to it."""
    for end in [i for i in tree.leaves if tree.nodes[i].trainable]:
        nodes = tree.path(end)[1:]
        lengths = np.cumsum([len(tree.nodes[i].token_ids) for i in nodes])
        yield nodes, tree.completion(end), lengths[:-1].tolist()


def fan(tree, node):
    return [c for c in tree.children[node] if not tree.nodes[c].trainable]


def fans(tree):
    """Tokens of a response up to a state -> the value rollouts of all nodes that end in it."""
    found = {}
    for node, children in enumerate(tree.children):
        if children:
            found.setdefault(tree.completion(node).tobytes(), []).extend(fan(tree, node))
    return found


def test_equal_parts_and_a_prompt_that_is_always_valued(policy):
    value = {"type": "monte_carlo", "rollouts": 2, "prompt": "always"}
    for tree in grow(policy, {"partition": {"type": "equal_parts", "parts": 4}, "value": value}, (3,)):
        assert len(fan(tree, 0)) == 2
        for nodes, tokens, cuts in spines(tree):
            assert cuts == [c + 1 for c in equal_parts(len(tokens), 4)]
            assert all(len(fans(tree)[tree.completion(node).tobytes()]) == 2 for node in nodes[:-1])


def test_the_prompt_is_not_valued_where_nothing_is_cut_behind_it(policy):
    credit = {"partition": {"type": "equal_parts", "parts": 4}, "value": {"type": "monte_carlo", "rollouts": 2}}
    assert not any(fan(tree, 0) for tree in grow(policy, credit, (3,)))


def test_delimiter_cuts_by_the_text_of_tokens(policy):
    credit = {
        "partition": {"type": "delimiter", "text": "55", "max_cuts": 2},
        "value": {"type": "monte_carlo", "rollouts": 1},
    }

    def texts(ids):
        return [str(i % 7) for i in ids.tolist()]  # so that the delimiter always spans two tokens

    trees = grow(policy, credit, (8,), known={"token_texts": texts}, context_length=60)
    found = [(tokens, cuts) for tree in trees for _, tokens, cuts in spines(tree)]
    assert all(cuts == [c + 1 for c in delimiter(texts(tokens), "55", 2)] for tokens, cuts in found)
    assert any(cuts for _, cuts in found), "a response of this test should hold the delimiter"


def test_entropy_cuts_before_undecided_tokens(policy):
    credit = {"partition": {"type": "entropy", "threshold": 2.0}, "value": {"type": "monte_carlo", "rollouts": 1}}
    for tree in grow(policy, credit, (3,), entropies=True):
        for _, tokens, cuts in spines(tree):
            ids = torch.tensor([[*tree.nodes[0].token_ids.tolist(), *tokens.tolist()]])
            with torch.no_grad():
                logits = policy(input_ids=ids).logits[0, len(tree.nodes[0].token_ids) - 1 : -1].double()
            entropies = torch.distributions.Categorical(logits=logits).entropy().numpy()
            assert cuts == [c + 1 for c in entropy_cuts(entropies, 2.0, 1) if c >= 0]


@pytest.mark.parametrize(
    ("credit", "message"),
    [
        ({"partition": {"type": "entropy", "threshold": 1.0}, "value": {"type": "monte_carlo"}}, "entropies"),
        ({"partition": {"type": "delimiter"}, "value": {"type": "monte_carlo"}}, "text of tokens"),
        ({"partition": {"type": "cutpoints"}, "value": {"type": "adaptive_monte_carlo"}}, "how to grade"),
    ],
)
def test_what_the_sampler_lacks_is_refused_at_once(policy, credit, message):
    with pytest.raises(ConfigError, match=message):
        grow(policy, credit, (2,))


class Scripted:
    """Serves requests in any order, several a step, by a clock that only it and grading move; notes when it took each
    up and when each ended. Where it does not tell, that is when it was asked."""

    gives_entropies, version, restarts = False, 0, 0

    def __init__(self, seed, tells):
        self.rng, self.tells, self.now = np.random.default_rng(seed), tells, 0.0
        self.waiting, self.began, self.spans = [], {}, {}

    def pass_time(self):
        seconds = float(self.rng.exponential())
        self.now += seconds
        return seconds

    @property
    def busy(self):
        return bool(self.waiting)

    def submit(self, requests):
        for request in requests:
            self.waiting.append(request)
            self.began[request.request_id] = self.now

    def step(self):
        self.pass_time()
        if self.tells:  # it takes requests up late
            for request in self.waiting:
                if self.began[request.request_id] < self.now and self.rng.random() < 0.3:
                    self.began[request.request_id] = self.now
        self.pass_time()
        self.rng.shuffle(self.waiting)
        count = int(self.rng.integers(0, len(self.waiting) + 1))
        ended, self.waiting = self.waiting[:count], self.waiting[count:]
        done = []
        for request in ended:
            began = self.began[request.request_id]
            self.spans.setdefault(request.tree, []).append((began, self.now))
            ids = self.rng.integers(3, 9, self.rng.integers(1, request.max_tokens + 1)).astype(np.int32)
            stopped = bool(self.rng.random() < 0.5) or len(ids) < request.max_tokens
            told = began if self.tells else None
            done.append(Completion(request.request_id, ids, np.full(len(ids), -1, np.float32), stopped, began=told))
        return done

    def release(self, request_id):
        pass


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("credit", [TREE, GRPO, CHAIN, ADAPTIVE])
def test_a_question_s_seconds_are_from_its_first_request_to_its_last_end_and_those_of_its_grading(
    credit, tells, monkeypatch
):
    for seed in range(10):
        engine = Scripted(seed, tells)
        monkeypatch.setattr("time.perf_counter", lambda engine=engine: engine.now)
        graded = {"a": [], "b": []}

        def grade(ended, engine=engine, graded=graded):
            began, seconds = engine.now, engine.pass_time()
            for question in {question for question, _, _ in ended}:
                graded[question].append((began, seconds))
            return [(float(engine.rng.integers(0, 2)), "wrong") for _ in ended]

        branches = (3, 2, 2) if credit is TREE else (4,)
        params = RolloutParams(questions=2, branch_factors=branches, context_length=24)
        whole = {"advantage": {"type": "difference"}, "mask": {"type": "all"}} | credit
        sampler = Sampler(
            engine, params, CreditParams.model_validate(whole), seed=1, iteration=1, version=0, grade=grade
        )
        trees = sampler.grow(PROMPTS)
        assert [own.question_id for own in sampler.seconds] == [tree.question_id for tree in trees]
        for own in sampler.seconds:
            spans = engine.spans[own.question_id]
            last = max(ended for _, ended in spans)
            between = sum(seconds for began, seconds in graded[own.question_id] if began < last)
            assert own.sampling == pytest.approx(last - min(began for began, _ in spans) - between, abs=1e-4)
            assert own.grading == pytest.approx(sum(seconds for _, seconds in graded[own.question_id]), abs=1e-4)
