"""A tree while it is sampled, and a request for one of its nodes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from spo_core.rollout.seconds import Watch
from spo_core.rollout.stops import Stop
from spo_core.rollout.value_rollouts import State, ValueGroup
from spo_core.tree import Node


@dataclass(frozen=True, slots=True)
class Prompt:
    question_id: str
    token_ids: tuple[int, ...]
    stop: Stop | None = None
    """Where its responses end, if not where the sampler says for all."""


@dataclass(frozen=True, slots=True)
class Branching:
    """A node that may get further children: its index, tokens and seed name, and the request that has them cached."""

    node: int
    prefix: np.ndarray
    path: tuple[str, ...]
    parent_request: int | None


@dataclass(slots=True)
class GrowingTree:
    """Nodes of one tree while it grows, in the order in which they finished; ``places`` are their numbers among
    siblings.

    ``ends`` are the nodes that end in a state with one fan for all of them, by the state's tokens; the fan hangs off
    the first while the tree grows. ``ended`` are the responses not graded yet: their last node, how many tokens their
    last request continued, and all their tokens (int32 [n]), the prompt included in both. ``undecided`` are the nodes
    with first children alone.
    """

    prompt: Prompt
    repeat: int = 0  # number among trees of the same question in an iteration
    nodes: list[Node] = field(default_factory=list)
    places: list[tuple[bool, int]] = field(default_factory=list)
    open: int = 0  # requests under way
    ends: dict[bytes, list[int]] = field(default_factory=dict)
    ended: list[tuple[int, int, np.ndarray]] = field(default_factory=list)
    undecided: list[Branching] = field(default_factory=list)
    group: ValueGroup = field(default_factory=ValueGroup)
    watch: Watch = field(default_factory=Watch)

    def add(self, node: Node, place: int = 0) -> int:
        self.nodes.append(node)
        self.places.append((not node.trainable, place))
        return len(self.nodes) - 1

    def prompt_state(self) -> State:
        return State(0, np.asarray(self.prompt.token_ids, np.int32), ("prompt",), None)

    def new_states(self, states: list[State]) -> list[State]:
        """Note all ``states`` and return the first of each kind: equal states (same token ids) share one fan."""
        new = []
        for state in states:
            ends = self.ends.setdefault(state.prefix.tobytes(), [])
            if not ends:
                new.append(state)
            ends.append(state.node)
        return new

    def decide(self) -> list[tuple[Branching, bool]]:
        """Return every undecided node, and whether rewards below it differ. All responses are graded by now, so this
        does not depend on how requests overlapped."""
        if not self.undecided:
            return []
        lowest, highest = ([node.reward for node in self.nodes] for _ in range(2))  # NaN: the node has children
        for index in range(len(self.nodes) - 1, 0, -1):  # children stand behind their parents
            parent = self.nodes[index].parent
            lowest[parent] = float(np.fmin(lowest[parent], lowest[index]))
            highest[parent] = float(np.fmax(highest[parent], highest[index]))
        found = [(branching, lowest[branching.node] < highest[branching.node]) for branching in self.undecided]
        self.undecided.clear()
        return found

    def ordered(self) -> tuple[Node, ...]:
        """Level by level, siblings by their numbers and value rollouts last: the same however requests overlapped.

        The fan of equal states hangs off the first of them in this order, whichever asked for it.
        """
        parents = [node.parent for node in self.nodes]
        rank = {index: new for new, index in enumerate(self._by_levels(parents))}
        first = {ends[0]: min(ends, key=rank.__getitem__) for ends in self.ends.values()}
        parents = [n.parent if n.trainable else first.get(n.parent, n.parent) for n in self.nodes]
        order = self._by_levels(parents)
        place = {old: new for new, old in enumerate(order)} | {-1: -1}
        moved = ((self.nodes[old], place[parents[old]]) for old in order)
        return tuple(node if node.parent == parent else node.under(parent) for node, parent in moved)

    def _by_levels(self, parents: list[int]) -> list[int]:
        children: dict[int, list[int]] = {}
        for index, parent in enumerate(parents):
            children.setdefault(parent, []).append(index)
        order = [0]
        for index in order:  # the list grows while it is read
            order += sorted(children.get(index, []), key=self.places.__getitem__)
        return order


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """A request under way: the tree and node it hangs from, the prefix it continues, its place among the samples.

    ``path`` is the seed name of the node it will become, ``asked`` when the engine was asked.
    """

    tree: GrowingTree
    parent: int
    prefix: np.ndarray
    path: tuple[str, ...]
    place: int
    max_tokens: int
    parent_request: int | None = None
    trainable: bool = True
    asked: float = field(default_factory=lambda: time.perf_counter())
