"""A credited tree as what a page draws: nested branches of segments, each with value, advantage and coloured text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from spo_core.credit import Credit
from spo_core.tree import RolloutTree
from spo_core.verify import Outcome

Decode = Callable[[Sequence[int]], str]
MOST_SINGLE_TOKENS = 20_000  # in a larger tree, neighbours with the same part in the update share one piece
_VISIBLE = str.maketrans({"\n": "⏎", "\r": "␍", "\t": "⇥"})


@dataclass(frozen=True, slots=True)
class TextSpan:
    """Text of one token, or of neighbours that share a character or a part in the update."""

    text: str
    part: str
    """``trained``; ``idle``: inside the mask, but its segment has no advantage; ``outside`` the mask; ``prompt``."""
    probability: tuple[float, float]
    """Lowest and highest of its tokens, as sampled."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One node. ``strength`` is |advantage| over the largest of the tree, 0 to 1."""

    index: int
    pieces: tuple[TextSpan, ...]
    value: float
    advantage: float
    strength: float
    ends: bool
    """Whether the response ends here; only then does the segment have an outcome and a reward."""
    outcome: str
    reward: float
    fan: dict[str, int]
    """Outcomes of the value rollouts that hang off its end, the most frequent first; empty where there are none, or
    where another node that ends in the same state has them."""


@dataclass(frozen=True, slots=True)
class Branch:
    """Segments that follow one another without branching, then the branches below the last one."""

    segments: tuple[Segment, ...]
    branches: tuple[Branch, ...]
    responses: int
    correct: int
    is_open: bool
    """Whether it is drawn unfolded, because it leads to the strongest advantage."""


@dataclass(frozen=True, slots=True)
class Row:
    """A step of drawing below the prompt: a branch that opens, ``depth`` branchings down, or (None) the end of the one
    opened last. Without branches of its own or further segments it ends at once."""

    branch: Branch | None
    depth: int

    @property
    def folds(self) -> bool:
        return self.branch is not None and (len(self.branch.segments) > 1 or bool(self.branch.branches))


@dataclass(frozen=True, slots=True)
class TreeView:
    question_id: str
    question: str
    iteration: int
    root: Branch
    segments: int
    segments_with_advantage: int
    tokens: int
    trained_tokens: int
    value_rollouts: int

    def rows(self) -> Iterator[Row]:
        """All branches below the prompt, each before those that hang from it."""
        waiting = [Row(branch, 0) for branch in reversed(self.root.branches)]
        while waiting:
            row = waiting.pop()
            yield row
            if row.branch is not None and row.folds:
                waiting.append(Row(None, row.depth))
                waiting += [Row(branch, row.depth + 1) for branch in reversed(row.branch.branches)]


def tree_view(tree: RolloutTree, credit: Credit, question: str, decode: Decode) -> TreeView:
    """Arrange a tree for drawing: every node appears once, value rollouts only as counts in their state's fan."""
    trainable = [i for i, node in enumerate(tree.nodes) if node.trainable]
    return TreeView(
        question_id=tree.question_id,
        question=question,
        iteration=tree.iteration,
        root=_Drawing(tree, credit, decode).root(),
        segments=len(trainable),
        segments_with_advantage=sum(credit.trains(i) for i in trainable),
        tokens=tree.generated_tokens,
        trained_tokens=sum(int(_trained(credit, i).sum()) for i in trainable),
        value_rollouts=len(tree.nodes) - 1 - len(trainable),
    )


def _trained(credit: Credit, index: int) -> np.ndarray:
    """Mask of a node's tokens that the update trains; bool [tokens]."""
    return credit.masks[index] & (credit.advantages[index] != 0)


class _Drawing:
    """Walks one tree."""

    def __init__(self, tree: RolloutTree, credit: Credit, decode: Decode) -> None:
        self.tree, self.credit = tree, credit
        self.advantages = [credit.advantage(index) for index in range(len(tree.nodes))]
        self.strongest = max(map(abs, self.advantages)) or 1.0
        self.followers = [[c for c in children if tree.nodes[c].trainable] for children in tree.children]
        self.single = tree.generated_tokens <= MOST_SINGLE_TOKENS
        self.decode: Callable[[tuple[int, ...]], str] = lru_cache(maxsize=None)(lambda ids: decode(list(ids)))
        self.below = [abs(a) for a in self.advantages]  # the strongest advantage of a node and all under it
        for index in range(len(tree.nodes) - 1, 0, -1):
            parent = tree.nodes[index].parent
            self.below[parent] = max(self.below[parent], self.below[index])

    def root(self) -> Branch:
        """Draw the whole tree from its ends up, without recursion: it may be as deep as it has segments."""
        runs: dict[int, tuple[list[int], bool]] = {}  # first node of a branch -> its nodes, whether it is open
        waiting = [(0, True)]
        while waiting:
            index, is_open = waiting.pop()
            run = [index]
            while index and len(self.followers[run[-1]]) == 1:
                run.append(self.followers[run[-1]][0])
            runs[index] = (run, is_open)
            children = self.followers[run[-1]]
            shown = max(children, key=lambda c: self.below[c]) if children and is_open else None
            waiting += [(child, child == shown) for child in children]
        drawn: dict[int, Branch] = {}
        for index, (run, is_open) in reversed(runs.items()):  # a branch comes after the one it hangs from
            branches = tuple(drawn.pop(c) for c in self.followers[run[-1]])
            segments = tuple(self.segment(i) for i in run)
            if branches:
                responses, correct = (sum(getattr(b, name) for b in branches) for name in ("responses", "correct"))
            else:
                responses, correct = int(index > 0), int(segments[-1].outcome == Outcome.CORRECT)
            drawn[index] = Branch(segments, branches, responses, correct, is_open)
        return drawn[0]

    def segment(self, index: int) -> Segment:
        node = self.tree.nodes[index]
        fan = Counter(self.tree.nodes[c].outcome for c in self.tree.children[index] if not self.tree.nodes[c].trainable)
        return Segment(
            index=index,
            pieces=tuple(self.pieces(index)),
            value=float(self.credit.values[index]),
            advantage=self.advantages[index] if index else math.nan,
            strength=abs(self.advantages[index]) / self.strongest,
            ends=index > 0 and not self.tree.children[index],
            outcome=node.outcome,
            reward=node.reward,
            fan=dict(fan.most_common()),
        )

    def pieces(self, index: int) -> Iterator[TextSpan]:
        node = self.tree.nodes[index]
        ids = tuple(int(i) for i in node.token_ids)
        parts = self.parts(index)
        probabilities = np.exp(node.logprobs.astype(np.float64)).tolist()
        before = tuple(int(i) for i in self.tree.nodes[node.parent].token_ids[-1:]) if index else ()
        start = 0
        for stop in range(1, len(ids) + 1):
            if stop < len(ids) and not self.single and parts[stop] == parts[start]:
                continue
            text = self.text(before, ids[start:stop])
            if text.endswith("\N{REPLACEMENT CHARACTER}") and stop < len(ids):
                continue  # this character's bytes continue in the next token
            part = "trained" if "trained" in parts[start:stop] else parts[start]
            yield TextSpan(text, part, (min(probabilities[start:stop]), max(probabilities[start:stop])))
            before, start = ids[start:stop][-4:], stop

    def parts(self, index: int) -> list[str]:
        if index == 0:
            return ["prompt"] * len(self.tree.nodes[0].token_ids)
        mask, trained = self.credit.masks[index], _trained(self.credit, index)
        return ["trained" if t else "idle" if m else "outside" for m, t in zip(mask, trained, strict=True)]

    def text(self, before: tuple[int, ...], ids: tuple[int, ...]) -> str:
        """Text that ``ids`` add behind ``before``: a tokenizer may decode a token alone without its space."""
        context, whole = self.decode(before) if before else "", self.decode(before + ids)
        text = whole[len(context) :] if whole.startswith(context) else self.decode(ids)
        return (text or self.decode(ids) or "".join(f"⟨{i}⟩" for i in ids)).translate(_VISIBLE)
