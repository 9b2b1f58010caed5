"""A credited tree as rows that a page folds, and the tokens of single nodes, asked for as they come in sight."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spo_core.config import DataParams
from spo_core.credit import Credit
from spo_core.errors import SPOError
from spo_core.problems import PROBLEM_SETS, problem_set
from spo_core.problems.base import ShowsMistakes
from spo_core.rollout.token_texts import token_texts
from spo_core.tree import RolloutTree
from spo_core.verify import Outcome
from spo_core.view.texts import Texts

ALL_OPEN = 60  # rows up to which a tree is shown unfolded
PREVIEW = 48  # tokens of a segment that its row shows until they are there with their numbers
MOST_MISTAKES = 1000  # wrong responses whose first wrong step is looked for
NO_MEANS = ("critic", "custom")  # values that are no means over a state's continuations
Z = 1.96  # of a 95 % interval


@dataclass(frozen=True, slots=True)
class TreeRow:
    """One segment. ``level``: branchings above it; ``below``: rows behind it that hang from it."""

    index: int
    level: int
    below: int
    is_open: bool
    visible: bool
    value: float
    interval: tuple[float, float] | None
    """95 % interval of the value; None at a response's end, whose value is its reward, and where the value is no mean
    of rewards, or there is none."""
    leaves: int
    correct: int
    continuations: int
    """Independent continuations that the value is the mean of; 0 where it is no such mean, but a critic's or a
    function's of the project's own."""
    advantage: float
    strength: float
    """Size of the advantage over the largest of the tree, 0 to 1."""
    trains: bool
    tokens: int
    outcome: str
    """Outcome of the response that ends here; empty where it goes on."""
    reward: float
    fan: dict[str, int]
    """Outcomes of the value rollouts from here."""
    equal: tuple[int, ...]
    """Other nodes that end in the same state."""
    mistake: bool
    """Whether the first wrong step of a response begins here."""
    preview: str


@dataclass(frozen=True, slots=True)
class Page:
    """A tree's rows and totals."""

    rows: list[TreeRow]
    prompt: str
    value: float
    interval: tuple[float, float] | None
    strongest: float
    """Size of the largest advantage; 1 where there is none."""
    responses: int
    correct: int
    segments: int
    segments_with_advantage: int
    tokens: int
    trained_tokens: int
    value_rollouts: int
    knows_mistakes: bool


def tree_page(tree: RolloutTree, credit: Credit, texts: Texts, params: Mapping[str, Any], question: str) -> Page:
    """Arrange a tree: trainable nodes depth first, value rollouts as counts."""
    nodes, order = tree.nodes, [i for i in tree.depth_first if i and tree.nodes[i].trainable]
    followers = [[c for c in children if nodes[c].trainable] for children in tree.children]
    advantages = [credit.advantage(i) for i in range(len(nodes))]
    strongest = max(map(abs, advantages)) or 1.0
    below, leaves, correct = np.zeros(len(nodes), int), np.zeros(len(nodes), int), np.zeros(len(nodes), int)
    for i in reversed([0, *order]):
        if not followers[i]:
            leaves[i], correct[i] = 1, nodes[i].outcome == Outcome.CORRECT
        if i:
            parent = nodes[i].parent
            below[parent] += 1 + below[i]
            leaves[parent] += leaves[i]
            correct[parent] += correct[i]
    equal = equal_states(tree)
    fans = {i: Counter(nodes[c].outcome for c in tree.children[i] if not nodes[c].trainable) for i in [0, *order]}
    shared = {i: sum(fans[k].total() for k in (i, *equal.get(i, ()))) for i in fans}
    sampled = params.get("credit.value.type") not in NO_MEANS
    counts = {i: (shared[i] or len(followers[i])) if sampled else 0 for i in fans}
    low, high = reward_range(tree, params)
    wrong = mistakes(tree, texts, params, question)
    levels, is_open = {0: 0}, {0: True}
    visible: dict[int, bool] = {}
    open_path = _way_to_strongest(tree, followers, advantages)
    rows = []
    for i in order:
        parent = nodes[i].parent
        levels[i] = levels[parent] + (1 if parent == 0 or len(followers[parent]) > 1 else 0)
        visible[i] = is_open[parent] and visible.get(parent, True)
        is_open[i] = len(order) <= ALL_OPEN or i in open_path
        value, ends = float(credit.values[i]), not tree.children[i]
        rows.append(
            TreeRow(
                index=i,
                level=levels[i] - 1,
                below=int(below[i]),
                is_open=is_open[i],
                visible=visible[i],
                value=value,
                interval=None if ends else interval(value, counts[i], low, high),
                leaves=int(leaves[i]),
                correct=int(correct[i]),
                continuations=counts[i],
                advantage=advantages[i],
                strength=abs(advantages[i]) / strongest,
                trains=credit.trains(i),
                tokens=len(nodes[i].token_ids),
                outcome=nodes[i].outcome if ends else "",
                reward=nodes[i].reward,
                fan=dict(fans[i].most_common()),
                equal=equal.get(i, ()),
                mistake=bool(wrong.get(i, np.zeros(0, bool)).any()) and not wrong.get(parent, np.zeros(1, bool))[-1],
                preview=texts.decode(nodes[i].token_ids[:PREVIEW].tolist()),
            )
        )
    return Page(
        rows=rows,
        prompt=texts.decode(nodes[0].token_ids.tolist()),
        value=float(credit.values[0]),
        interval=interval(float(credit.values[0]), counts[0], low, high),
        strongest=strongest,
        responses=int(leaves[0]),
        correct=int(correct[0]),
        segments=len(rows),
        segments_with_advantage=sum(row.trains for row in rows),
        tokens=tree.generated_tokens,
        trained_tokens=sum(int((credit.masks[i] & (credit.advantages[i] != 0)).sum()) for i in order),
        value_rollouts=len(nodes) - 1 - len(order),
        knows_mistakes=_shows_mistakes(params, tree.question_id) is not None,
    )


def _way_to_strongest(tree: RolloutTree, followers: list[list[int]], advantages: list[float]) -> set[int]:
    """Nodes on the way to the largest advantage, and of each branching's other nodes none."""
    best = max((i for i, node in enumerate(tree.nodes) if node.trainable), key=lambda i: abs(advantages[i]), default=0)
    while followers[best]:
        best = max(followers[best], key=lambda c: abs(advantages[c]))
    return set(tree.path(best))


def interval(value: float, continuations: int, low: float, high: float) -> tuple[float, float] | None:
    """Wilson's 95 % interval of a mean of rewards in [low, high] over independent continuations.

    Exact in kind where rewards have two values. Responses below one continuation share its text, so they count as the
    one that they are; that makes the interval wider than it need be where they differ.
    """
    if not math.isfinite(value) or continuations < 1 or high <= low:
        return None
    p, k = min(1.0, max(0.0, (value - low) / (high - low))), continuations
    centre = (p + Z * Z / (2 * k)) / (1 + Z * Z / k)
    half = Z * math.sqrt(p * (1 - p) / k + Z * Z / (4 * k * k)) / (1 + Z * Z / k)
    return low + (high - low) * max(0.0, centre - half), low + (high - low) * min(1.0, centre + half)


def reward_range(tree: RolloutTree, params: Mapping[str, Any]) -> tuple[float, float]:
    """The least and the largest of the rewards for right and wrong and of those that the tree's responses got."""
    given = [params.get(f"verify.rewards.{outcome}") for outcome in (Outcome.CORRECT, Outcome.WRONG)]
    rewards = [float(value) for value in given if isinstance(value, int | float)]
    rewards += [node.reward for node in tree.nodes if math.isfinite(node.reward)]
    return (min(rewards), max(rewards)) if rewards else (0.0, 1.0)


def equal_states(tree: RolloutTree) -> dict[int, tuple[int, ...]]:
    """For nodes that end in a state of several trainable nodes, the others, by token ids from the prompt on."""
    groups: dict[bytes, list[int]] = {}
    for index, tokens in tree.completions():
        if index and tree.nodes[index].trainable:
            groups.setdefault(tokens.tobytes(), []).append(index)
    several = [sorted(group) for group in groups.values() if len(group) > 1]
    return {i: tuple(k for k in group if k != i) for group in several for i in group}


def _shows_mistakes(params: Mapping[str, Any], question_id: str) -> ShowsMistakes | None:
    """The problem set of a question, in a mixture the one with whose name its id begins, if it knows which step of a
    response is wrong."""
    name = params.get("data.problem_set") or ""
    try:
        found = problem_set(DataParams(problem_set=name if name in PROBLEM_SETS else question_id.partition("-")[0]))
    except (SPOError, ValueError):
        return None
    return found if isinstance(found, ShowsMistakes) else None


def mistakes(tree: RolloutTree, texts: Texts, params: Mapping[str, Any], question: str) -> dict[int, np.ndarray]:
    """Tokens of the first wrong step of each wrong response, bool [tokens], by node; empty where the problem set does
    not know it."""
    problem = _shows_mistakes(params, tree.question_id)
    if problem is None or texts.tokenizer is None:
        return {}
    found: dict[int, np.ndarray] = {}
    wrong = [i for i in tree.leaves if tree.nodes[i].trainable and tree.nodes[i].outcome == Outcome.WRONG]
    for leaf in wrong[:MOST_MISTAKES]:
        pieces = token_texts(texts.tokenizer, tree.completion(leaf))
        step = problem.mistake(question, "".join(pieces))
        if step is None:
            continue
        ends = np.cumsum([len(piece) for piece in pieces])
        inside = (ends > step[0]) & (ends - [len(piece) for piece in pieces] < step[1])
        start = 0
        for node in tree.path(leaf)[1:]:
            own = inside[start : start + len(tree.nodes[node].token_ids)]
            start += len(own)
            if own.any():
                found[node] = found.get(node, np.zeros(len(own), bool)) | own
    return found


NODE_COLUMNS = (
    *("question_id", "node", "parent", "depth", "text", "tokens", "finish", "trainable", "value", "advantage"),
    *("tokens_in_mask", "reward", "outcome", "log_probability", "mean_token_probability"),
)


def node_cells(tree: RolloutTree, credit: Credit, texts: Texts) -> Iterator[list[Any]]:
    """A row of NODE_COLUMNS for each node, value rollouts too. The log-probability is of the whole segment, the mean
    that of its tokens' geometric mean; the prompt was not sampled and has none."""
    for index, (node, depth) in enumerate(zip(tree.nodes, tree.depths, strict=True)):
        total = float(node.logprobs.astype(np.float64).sum()) if index else math.nan
        yield [
            *(tree.question_id, index, node.parent if index else None, depth),
            texts.decode(node.token_ids.tolist()),
            *(len(node.token_ids), str(node.finish), node.trainable, float(credit.values[index])),
            credit.advantage(index) if node.trainable else math.nan,
            *(int(credit.masks[index].sum()), node.reward, node.outcome),
            *(total, math.exp(total / len(node.token_ids))),
        ]


def token_blocks(
    tree: RolloutTree,
    credit: Credit,
    texts: Texts,
    wrong: Mapping[int, np.ndarray],
    nodes: Iterable[int],
    most: int | None = None,
) -> dict[int, dict[str, Any]]:
    """Texts and numbers of the first ``most`` tokens of nodes, in a list for each number."""
    found = {}
    for index in nodes:
        node = tree.nodes[index]
        ids = node.token_ids[:most].tolist()
        before = tree.nodes[node.parent].token_ids[-4:].tolist() if index else []
        marked = wrong.get(index, np.zeros(len(node.token_ids), bool))[: len(ids)]
        found[index] = {
            "text": texts.pieces(before, ids),
            "id": ids,
            "probability": [round(float(p), 5) for p in np.exp(node.logprobs[: len(ids)].astype(np.float64))],
            "advantage": [round(float(a), 5) for a in credit.advantages[index][: len(ids)]],
            "mask": credit.masks[index][: len(ids)].astype(int).tolist(),
            "wrong": marked.astype(int).tolist(),
            "value": None if math.isnan(v := float(credit.values[index])) else round(v, 5),
            "more": len(node.token_ids) - len(ids),
        }
    return found
