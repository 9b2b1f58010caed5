"""How probable the policy holds the right answer after a prefix: a value of every state without a rollout.

The answer is appended where a response may go on and read by teacher forcing, in one forward pass over the inner nodes
of a tree, each prefix once: GRPO-VPS values prefixes of single responses so, here they are states of trees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spo_core.config import GoldAnswer
from spo_core.learn.backend import Backend
from spo_core.learn.critic import StateValues
from spo_core.learn.logprobs import sequence_logprobs
from spo_core.learn.objective import WeightedTree
from spo_core.tree import FinishReason, Node, RolloutTree

CUES = {"hashes": ("\n#### ", ""), "boxed": ("\n\nThe final answer is \\boxed{", "}")}
"""By answer form, what stands before and behind an answer."""


@dataclass(frozen=True, slots=True)
class Ending:
    """An answer as it ends a response: token ids, of which the first ``cue`` only lead to it and are not scored."""

    token_ids: tuple[int, ...]
    cue: int


@dataclass(frozen=True, eq=False, slots=True)
class Answered:
    """A tree with the answer below each of ``states``, nodes of it; the answers are its last nodes, in the same order,
    and begin with ``cue`` tokens that are not scored."""

    tree: RolloutTree
    states: tuple[int, ...]
    cue: int


Score = Callable[[Sequence[Answered]], list[float]]
"""From trees to the log-prob of every answer in them, in order."""


def ending(params: GoldAnswer, form: str, tokenizer: Any, answer: str) -> Ending:
    """Encode an answer as a response states it in that answer form. Where nothing closes it the policy's EOS token
    does, so that 270 is not credited for beginning with 27."""
    before, behind = CUES[form]
    cue = before if params.cue is None else params.cue
    close = behind if params.close is None else params.close
    # in one piece: a tokenizer that writes a word's space into its token gives the answer alone other ids
    found = tokenizer(cue + answer + close, add_special_tokens=False, return_offsets_mapping=True)
    led = sum(stop <= len(cue) for _, stop in found["offset_mapping"])
    end = [] if close or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return Ending((*found["input_ids"], *end), led)


def answered(tree: RolloutTree, end: Ending, context_length: int) -> Answered:
    """Append an answer to every state that goes on and has room for it within the context."""
    room = context_length - len(tree.nodes[0].token_ids) - len(end.token_ids)
    states = tuple(i for i, children in enumerate(tree.children) if children and tree.completion_lengths[i] <= room)
    unknown = np.zeros(len(end.token_ids))
    answers = (Node.sampled(i, end.token_ids, unknown, FinishReason.STOP, trainable=False) for i in states)
    return Answered(replace(tree, nodes=(*tree.nodes, *answers)), states, end.cue)


def answer_logprobs(backend: Backend, found: Sequence[Answered], temperature: float, budget: int) -> list[float]:
    """Log-prob of every answer, its cue left out, tree by tree in the order of ``states``.

    ``budget``: most tokens of a forward pass. All ranks of ``backend`` make the same call and get the same numbers.
    """
    firsts = [len(own.tree.nodes) - len(own.states) for own in found]
    weighted = [
        WeightedTree(i, own.tree, _scored(own, first), (), (), ())
        for i, (own, first) in enumerate(zip(found, firsts, strict=True))
        if own.states
    ]
    sums = sequence_logprobs(backend, weighted, lambda batch: backend.logprobs(batch, temperature)[0], budget)
    return [
        sums[i, first + k]
        for i, (own, first) in enumerate(zip(found, firsts, strict=True))
        for k in range(len(own.states))
    ]


class AnswerValues:
    """Values states by the probability of the right answer. ``endings`` gives that of a question's id."""

    def __init__(self, endings: Callable[[str], Ending], score: Score) -> None:
        self._endings, self._score = endings, score
        self._known: dict[str, Ending] = {}

    def values(self, trees: Sequence[RolloutTree], context_length: int) -> list[StateValues]:
        """Values of the states at which nodes begin, before their first tokens; NaN before the others.

        A state from which the answer does not fit into the context has the value 0.
        """
        found = []
        for tree in trees:
            if tree.question_id not in self._known:
                self._known[tree.question_id] = self._endings(tree.question_id)
            found.append(answered(tree, self._known[tree.question_id], context_length))
        logprobs = iter(self._score(found))
        return [self._before(tree, own, logprobs) for tree, own in zip(trees, found, strict=True)]

    @staticmethod
    def _before(tree: RolloutTree, own: Answered, logprobs: Any) -> StateValues:
        values = np.zeros(len(tree.nodes))
        for state in own.states:
            values[state] = math.exp(next(logprobs))
        before = tuple(np.full(len(node.token_ids), math.nan) for node in tree.nodes)
        for index, node in enumerate(tree.nodes[1:], start=1):
            before[index][0] = values[node.parent]
        return before


def _scored(own: Answered, first: int) -> tuple[np.ndarray, ...]:
    lengths = [len(node.token_ids) for node in own.tree.nodes]
    return tuple(np.arange(n) >= (own.cue if i >= first else n) for i, n in enumerate(lengths))
