"""How wrong values are: states of a candidate's trees, each sampled from often enough to know its value.

The published analyses of Monte Carlo values are such: 9 rollouts against 256, and how often alternatives are ranked
in the right order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from spo_core.analysis.bench import Bench
from spo_core.analysis.candidates import Candidate
from spo_core.analysis.efficiency import TOLD_APART, Estimate
from spo_core.config import digest
from spo_core.credit import Credit
from spo_core.credit.pairs import CreditedTree
from spo_core.learn.critic import StateValues
from spo_core.rollout.engine import Request, finish_all
from spo_core.rollout.seeds import derive_seed, state_name
from spo_core.rollout.stops import stop_at
from spo_core.system.files import read_json, write_json
from spo_core.system.progress import Progress
from spo_core.tree import FinishReason, Node, RolloutTree

BLOCK = 8  # states sampled from before they are written
BINS = 5


@dataclass(frozen=True, slots=True)
class State:
    """The end of a segment whose response goes on, with the value it was given and the true one.

    ``pair`` numbers the two states that an advantage compares: siblings, or a state and the one before it.
    ``position`` is the share of its response's tokens, of those that go on from it on average, that lie before it.
    """

    question_id: str
    pair: int
    depth: int
    position: float
    value: float
    truth: float
    """Mean reward of the rollouts from it."""
    noise: float
    """Variance of ``truth``: that of a reward over the number of rollouts."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Of pairs of states with different true values: shares ranked right, wrong, and given equal values.

    ``close`` counts the pairs left out, whose true values rollouts do not tell apart by two standard errors.
    """

    right: Estimate
    wrong: Estimate
    tied: Estimate
    pairs: int
    close: int


def choose_pairs(pairs: Sequence[CreditedTree], count: int, seed: int) -> list[tuple[int, int, int]]:
    """Tree and two nodes of at most ``count`` pairs of valued states, one a tree while trees last: two siblings where
    the tree has such, else a state and the next one of its response. States of equal token ids are no pair."""
    rng = np.random.default_rng(seed)
    options = []
    for number, (tree, credit) in enumerate(pairs):
        inner = [i for i, below in enumerate(tree.children) if below and np.isfinite(credit.values[i])]
        own = set(inner)
        siblings = [
            (a, b)
            for below in tree.children
            for a in below
            for b in below
            if a < b and a in own and b in own and not _equal(tree, a, b)
        ]
        nested = [(tree.nodes[i].parent, i) for i in inner if tree.nodes[i].parent in own]
        options.append([(number, *found) for found in siblings or nested])
    chosen: list[tuple[int, int, int]] = []
    remaining = [list(rng.permutation(len(found))) for found in options]
    while len(chosen) < count and any(remaining):
        for found, left in zip(options, remaining, strict=True):
            if left and len(chosen) < count:
                chosen.append(found[left.pop()])
    return chosen


def cut_within(pair: CreditedTree, before: StateValues, seed: int) -> CreditedTree:
    """A tree of whole responses with the first one of three tokens or more cut at two places, so that a critic's values
    ``before`` every token give states to look at; a tree that branches, or has no such response, as it is."""
    tree, credit = pair
    first = next((i for i in tree.children[0] if len(tree.nodes[i].token_ids) > 2), None)
    if first is None or any(tree.children[i] for i in tree.children[0]):
        return pair
    node, own = tree.nodes[first], before[first]
    rng = np.random.default_rng(derive_seed(seed, "cuts", tree.question_id))
    a, b = sorted(1 + rng.choice(len(own) - 1, 2, replace=False))
    parts = [
        Node.sampled(number, node.token_ids[part], node.logprobs[part], FinishReason.SEGMENT)
        for number, part in enumerate((slice(a), slice(a, b)))
    ]
    end = Node.sampled(2, node.token_ids[b:], node.logprobs[b:], node.finish).graded(node.reward, node.outcome)
    cut = RolloutTree(tree.question_id, (tree.nodes[0], *parts, end), tree.policy_version, tree.iteration)
    values = np.array([credit.values[0], own[a], own[b], node.reward])
    unknown = tuple(np.zeros(n, np.float32) for n in cut.lengths)
    return cut, Credit(values, unknown, tuple(u.astype(bool) for u in unknown))


def _equal(tree: RolloutTree, a: int, b: int) -> bool:
    return np.array_equal(tree.nodes[a].token_ids, tree.nodes[b].token_ids)


def measure_states(
    bench: Bench,
    candidate: Candidate,
    pairs: Sequence[CreditedTree],
    folder: Path,
    *,
    states: int,
    rollouts: int,
    progress: Progress | None = None,
) -> list[State]:
    """True values of at least ``states`` states, by ``rollouts`` responses from each; fewer where the trees have fewer.

    Blocks of the same states that are there are kept. ``progress`` is told of states done and to do.
    """
    chosen = choose_pairs(pairs, -(-states // 2), derive_seed(candidate.params.run.seed, "states", candidate.name))
    asked = [(pairs[number], node, pair) for pair, (number, *nodes) in enumerate(chosen) for node in nodes]
    folder.mkdir(parents=True, exist_ok=True)
    found: list[State] = []
    for start in range(0, len(asked), BLOCK):
        block = asked[start : start + BLOCK]
        file = folder / f"{digest([rollouts, [(number, chosen[number]) for *_, number in block]])[:16]}.json"
        if not file.is_file():
            rewards = sample_from(bench, candidate, [(pair[0], node) for pair, node, _ in block], rollouts)
            rows = [_state(*pair, node, number, own) for (pair, node, number), own in zip(block, rewards, strict=True)]
            write_json(file, [asdict(row) for row in rows])
        found += [State(**row) for row in read_json(file)]
        if progress:
            progress(len(found), len(asked))
    return found


def _state(tree: RolloutTree, credit: Credit, node: int, pair: int, rewards: np.ndarray) -> State:
    ends = [end for end, below in zip(tree.completion_lengths, tree.children, strict=True) if not below]
    return State(
        tree.question_id,
        pair,
        tree.depths[node],
        min(1.0, tree.completion_lengths[node] / float(np.mean(ends))),
        float(credit.values[node]),
        float(rewards.mean()),
        float(rewards.var(ddof=1) / len(rewards)),
    )


def sample_from(
    bench: Bench, candidate: Candidate, states: Sequence[tuple[RolloutTree, int]], rollouts: int
) -> np.ndarray:
    """Rewards [states, rollouts] of responses that go on from states, as those rollouts do that the candidate's values
    are means of."""
    worker = bench.worker(candidate)
    rollout, seed = worker.params.rollout, candidate.params.run.seed
    by_id = {row.question_id: row for row in bench.rows}
    prompts = {tree.question_id: worker.prompt(by_id[tree.question_id]) for tree, _ in states}
    worker.sync(list(prompts.values()), 0)
    stop = stop_at(bench.tokenizer, bench.problem.template.stop)
    prefixes: list[tuple[str, np.ndarray]] = []
    requests: list[Request] = []
    for tree, node in states:
        ids = tree.completion(node)
        prefix = np.concatenate([np.asarray(prompts[tree.question_id].token_ids, np.int32), ids])
        room = rollout.context_length - len(prefix)
        if rollout.max_completion_tokens is not None:
            room = min(room, rollout.max_completion_tokens - len(ids))
        for k in range(rollouts):
            own = derive_seed(seed, "truth", tree.question_id, *state_name(ids), k)
            proves = candidate.prover_name is not None  # then values are the prover's
            requests.append(Request(len(requests), prefix, room, own, tree=tree.question_id, prover=proves))
            prefixes.append((tree.question_id, ids))
    engine = worker.engine
    engine.submit(requests)
    done = finish_all(engine)
    for request in requests:
        engine.release(request.request_id)
    engine.sleep()
    responses = []
    for request, (question, ids) in zip(requests, prefixes, strict=True):
        completion = done[request.request_id]
        response = np.concatenate([ids, completion.token_ids])
        end = stop(response, len(ids)) if stop else None
        ended = completion.stopped or end is not None
        response = response[:end] if end is not None else response
        responses.append((by_id[question], response, FinishReason.STOP if ended else FinishReason.LENGTH))
    rewards = [reward for reward, _ in worker.grade(responses, rollout)]
    return np.array(rewards, np.float64).reshape(len(states), rollouts)


def error(states: Sequence[State]) -> Estimate:
    """Root mean squared error of the values, less what the truth's own noise adds; its error by the delta method, over
    questions. NaN without states."""
    squares = np.array([(s.value - s.truth) ** 2 - s.noise for s in states])
    if not len(squares):
        return Estimate(math.nan, math.nan)
    mean = float(squares.mean())
    by_question: dict[str, float] = {}
    for state, square in zip(states, squares.tolist(), strict=True):
        by_question[state.question_id] = by_question.get(state.question_id, 0.0) + square - mean
    root, count = math.sqrt(max(0.0, mean)), len(by_question)
    if root == 0 or count < 2:
        return Estimate(root, math.nan)
    spread = math.sqrt(count / (count - 1) * sum(off**2 for off in by_question.values())) / len(squares)
    return Estimate(root, spread / (2 * root))


def calibration(states: Sequence[State]) -> list[tuple[float, float, int]]:
    """Mean value, mean truth and number of states, for equal bins of the values' range."""
    if not states:
        return []
    values = np.array([s.value for s in states])
    low, high = float(values.min()), float(values.max())
    bins = np.minimum(((values - low) / (high - low or 1.0) * BINS).astype(int), BINS - 1)
    truths = np.array([s.truth for s in states])
    return [
        (float(values[bins == b].mean()), float(truths[bins == b].mean()), int((bins == b).sum()))
        for b in range(BINS)
        if (bins == b).any()
    ]


def ranking(states: Sequence[State]) -> Ranking:
    """How pairs of states are ordered by their values, where their true order is known."""
    by_pair: dict[int, list[State]] = {}
    for state in states:
        by_pair.setdefault(state.pair, []).append(state)
    whole = [(a, b) for a, b in (found for found in by_pair.values() if len(found) == 2)]
    told = [(a, b) for a, b in whole if abs(a.truth - b.truth) > TOLD_APART * math.sqrt(a.noise + b.noise)]
    signs = np.array([np.sign(a.value - b.value) * np.sign(a.truth - b.truth) for a, b in told])
    return Ranking(_share(signs == 1), _share(signs == -1), _share(signs == 0), len(told), len(whole) - len(told))


def _share(chosen: np.ndarray) -> Estimate:
    n = len(chosen)
    if not n:
        return Estimate(math.nan, math.nan)
    share = float(chosen.mean())
    return Estimate(share, math.sqrt(share * (1 - share) / n))
