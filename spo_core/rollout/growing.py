"""A tree while it is sampled, and a request for one of its nodes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from spo_core.rollout.value_rollouts import ValueGroup
from spo_core.tree import Node


@dataclass(frozen=True, slots=True)
class Prompt:
    question_id: str
    token_ids: tuple[int, ...]


@dataclass(slots=True)
class GrowingTree:
    """Nodes of one tree while it grows, in the order in which they finished; ``places`` are theirs among siblings."""

    prompt: Prompt
    nodes: list[Node] = field(default_factory=list)
    places: list[tuple[bool, int]] = field(default_factory=list)
    open: int = 0  # requests under way
    prompt_valued: bool = False
    group: ValueGroup = field(default_factory=ValueGroup)

    def add(self, node: Node, place: int = 0) -> int:
        self.nodes.append(node)
        self.places.append((not node.trainable, place))
        return len(self.nodes) - 1

    def ordered(self) -> tuple[Node, ...]:
        """Level by level, siblings by their numbers and value rollouts last: the same however requests overlapped."""
        children: dict[int, list[int]] = {}
        for index, node in enumerate(self.nodes):
            children.setdefault(node.parent, []).append(index)
        order = [0]
        for index in order:  # grows as it is read
            order += sorted(children.get(index, []), key=self.places.__getitem__)
        place = {old: new for new, old in enumerate(order)} | {-1: -1}
        moved = ((self.nodes[old], place[self.nodes[old].parent]) for old in order)
        return tuple(node if node.parent == parent else replace(node, parent=parent) for node, parent in moved)


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """A request under way: the tree and node it hangs from, the prefix it continues, its place among the samples.

    ``path`` is the seed name of the node it will become.
    """

    tree: GrowingTree
    parent: int
    prefix: np.ndarray
    path: tuple[str, ...]
    place: int
    max_tokens: int
    parent_request: int | None = None
    trainable: bool = True
