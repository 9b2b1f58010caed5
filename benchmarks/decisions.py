"""A model of questions whose decisions are independent: its trees, and their credit for many questions at once.

A question has N decisions, each wrong with probability eps; a response's reward is 1 if all its decisions are right.
Behind every decision stand m fair coins that decide nothing: style. The policy has a logit for every decision and one
for each of the m coins, so the score of a decision is x - (1 - eps), and of a coin x - 1/2, with x = 1 where it came
up. Either all questions ask for the same N decisions, or each draws its N, with repetition, from K facts that questions
share; style is shared by all decisions and questions. Every token is one decision or one coin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel

from spo_core.config import CreditParams
from spo_core.credit.advantage import STD_EPSILON
from spo_core.credit.partition import equal_parts, segment_bounds
from spo_core.tree import FinishReason, Node, RolloutTree


class Setting(BaseModel, frozen=True):
    """Questions of the model; ``facts`` None: all questions ask for the same decisions."""

    decisions: int
    eps: float
    coins: int
    facts: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens of a response."""
        return self.decisions * (1 + self.coins)

    @property
    def logits(self) -> int:
        """Logits of decisions or facts; those of coins come behind them."""
        return self.facts or self.decisions

    def value(self, decided: int) -> float:
        """Probability that a response whose first ``decided`` decisions are right will be right."""
        return (1 - self.eps) ** (self.decisions - decided)


class Segment(NamedTuple):
    """A node of every tree of a candidate: its parent and the decisions that it makes, [start, stop)."""

    parent: int
    start: int
    stop: int
    trainable: bool = True


Shape = list[Segment]  # nodes but the prompt: node i + 1 is shape[i]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An estimator of credit: the shape of its trees in a setting, and the params by which these get credit; ``first``
    is ``rollout.first_children``."""

    name: str
    shape: Callable[[Setting], Shape]
    credit: Callable[[Setting], CreditParams]
    first: int | None = None


def grown(branch_factors: tuple[int, ...], setting: Setting) -> Shape:
    """Shape of a tree whose every node branches; as with fixed_tokens, its last segments take what remains."""
    depth, parents = len(branch_factors), [0]
    shape: Shape = []
    ends = [setting.decisions // depth * level for level in range(depth)] + [setting.decisions]
    for (start, stop), children in zip(pairwise(ends), branch_factors, strict=True):
        below = [Segment(parent, start, stop) for parent in parents for _ in range(children)]
        parents = [len(shape) + 1 + i for i in range(len(below))]
        shape += below
    return shape


def spine(parts: int, rollouts: int, setting: Setting) -> Shape:
    """Shape of one response in equal parts, with a fan of value rollouts at every cut; the prompt is not valued."""
    shape: Shape = []
    parent = 0
    for start, stop in segment_bounds(setting.decisions, equal_parts(setting.decisions, parts)):
        if parent:
            shape += [Segment(parent, start, setting.decisions, trainable=False) for _ in range(rollouts)]
        shape.append(Segment(parent, start, stop))
        parent = len(shape)
    return shape


def credit(partition: dict, value: dict, advantage: str) -> CreditParams:
    return CreditParams.model_validate(
        {"partition": partition, "value": value, "advantage": {"type": advantage}, "mask": {"type": "all"}}
    )


def group(size: int, advantage: str) -> Candidate:
    name = {"group_normalized": "GRPO", "leave_one_out": "RLOO"}[advantage]
    params = credit({"type": "whole"}, {"type": "none"}, advantage)
    return Candidate(f"{name}-{size}", lambda setting: grown((size,), setting), lambda _: params)


def tree(*branch_factors: int, first: int | None = None) -> Candidate:
    def params(setting: Setting) -> CreditParams:
        tokens = setting.decisions // len(branch_factors) * (1 + setting.coins)
        return credit({"type": "fixed_tokens", "tokens": tokens}, {"type": "tree_mean"}, "difference")

    name = "-".join(map(str, branch_factors)) + (f", {first} first" if first else "")
    return Candidate(name, lambda setting: grown(branch_factors, setting), params, first)


def chain(cuts: int, rollouts: int) -> Candidate:
    value = {"type": "monte_carlo", "rollouts": rollouts}
    params = credit({"type": "equal_parts", "parts": cuts + 1}, value, "difference")
    name = f"chain, {cuts} cuts, {rollouts} rollouts"
    return Candidate(name, lambda setting: spine(cuts + 1, rollouts, setting), lambda _: params)


def exact(parts: int | None) -> Candidate:
    """One response with exact values at the ends of ``parts`` equal segments; None: of every decision."""

    def params(setting: Setting) -> CreditParams:
        partition = {"type": "equal_parts", "parts": parts or setting.decisions}
        value = {"type": "custom", "path": f"{__name__}:exact_values", "options": setting.model_dump()}
        return credit(partition, value, "difference")

    name = f"exact, {f'{parts} segments' if parts else 'every decision'}"
    return Candidate(name, lambda setting: spine(parts or setting.decisions, 0, setting), params)


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """Trees of one shape: by segment, bool [trees, decisions] and [trees, decisions, coins] that came up. Beyond
    ``first`` children a node has others only in trees where its rewards differ."""

    setting: Setting
    shape: Shape
    right: list[np.ndarray]
    coins: list[np.ndarray]
    first: int | None = None

    def all_right(self) -> np.ndarray:
        """Whether every decision up to the end of a node is right; bool [nodes, trees]."""
        found = [np.ones(len(self.right[0]), bool)]
        for segment, right in zip(self.shape, self.right, strict=True):
            found.append(found[segment.parent] & right.all(axis=1))
        return np.array(found)

    def children(self) -> list[list[int]]:
        lists: list[list[int]] = [[] for _ in range(len(self.shape) + 1)]
        for index, segment in enumerate(self.shape, start=1):
            lists[segment.parent].append(index)
        return lists

    def asked(self) -> np.ndarray:
        """Which nodes their parents ask for, if these are there themselves; bool [nodes, trees]."""
        lowest = self.all_right()
        highest, asked = lowest.copy(), np.ones_like(lowest)
        for index, children in list(enumerate(self.children()))[::-1]:
            begun = children[: self.first]
            if begun:
                lowest[index], highest[index] = lowest[begun].all(axis=0), highest[begun].any(axis=0)
                asked[children[len(begun) :]] = highest[index] & ~lowest[index]
        return asked

    def sampled(self) -> np.ndarray:
        """Which nodes are there; bool [nodes, trees]."""
        there = self.asked()
        for index, segment in enumerate(self.shape, start=1):
            there[index] &= there[segment.parent]
        return there

    def tokens(self) -> np.ndarray:
        """Generated tokens; int64 [trees]."""
        lengths = np.array([segment.stop - segment.start for segment in self.shape]) * (1 + self.setting.coins)
        return lengths @ self.sampled()[1:]


def draw(setting: Setting, shape: Shape, trees: int, rng: np.random.Generator, first: int | None = None) -> Sample:
    lengths = [segment.stop - segment.start for segment in shape]
    right = [rng.random((trees, n), np.float32) >= setting.eps for n in lengths]
    coins = [rng.integers(0, 2, (trees, n, setting.coins), bool) for n in lengths]
    return Sample(setting, shape, right, coins, first)


def rollout_trees(sample: Sample) -> Iterator[RolloutTree]:
    """The sample as the product's trees. A token's id is twice its place, and 1 more where it came up."""
    setting, reached, children, there = sample.setting, sample.all_right(), sample.children(), sample.sampled()
    for number in range(reached.shape[1]):
        nodes = [Node.prompt([0])]
        place = np.cumsum(there[:, number]) - 1
        for index, segment in enumerate(sample.shape, start=1):
            if not there[index, number]:
                continue
            decided, style = sample.right[index - 1][number], sample.coins[index - 1][number]
            came_up = np.column_stack([decided, style]).ravel()
            places = np.arange(segment.start * (1 + setting.coins), segment.stop * (1 + setting.coins))
            of_decisions = np.where(decided, 1 - setting.eps, setting.eps)
            logprobs = np.log(np.column_stack([of_decisions, np.full(style.shape, 0.5)]).ravel())
            ends = not children[index]
            nodes.append(
                Node.sampled(
                    int(place[segment.parent]),
                    2 * places + came_up,
                    logprobs,
                    FinishReason.STOP if ends else FinishReason.SEGMENT,
                    trainable=segment.trainable,
                    reward=float(reached[index, number]) if ends else math.nan,
                )
            )
        yield RolloutTree(str(number), tuple(nodes))


def exact_values(tree: RolloutTree, options: Setting) -> np.ndarray:
    """Probability that a response goes on to be right, for every node; an estimator that ``credit.value`` may name."""
    values = np.zeros(len(tree.nodes))
    for index, tokens in tree.completions():
        decided = tokens[:: 1 + options.coins]
        if (decided % 2 == 1).all():
            values[index] = options.value(len(decided))
    return values


def batch_values(sample: Sample, params: CreditParams) -> np.ndarray:
    """``credit.value.node_values`` of all trees; float64 [nodes, trees], NaN where not estimated.

    A tree has one response where value rollouts are used, so that no two of its valued states are equal.
    """
    reached, children, asked = sample.all_right(), sample.children(), sample.asked()
    if params.value.type == "custom":
        decided = (0, *(segment.stop for segment in sample.shape))
        return reached * np.array([[sample.setting.value(stop)] for stop in decided])
    leaves = np.array([not c for c in children])
    values = np.where(leaves[:, None], reached, math.nan)
    for index in np.flatnonzero(~leaves)[::-1].tolist():
        fan = [c for c in children[index] if not sample.shape[c - 1].trainable]
        if params.value.type == "tree_mean":
            values[index] = values[children[index]].mean(axis=0, where=asked[children[index]])
        elif fan:
            values[index] = reached[fan].mean(axis=0)
    return values


def batch_advantages(sample: Sample, values: np.ndarray, params: CreditParams) -> np.ndarray:
    """``credit.advantage.node_advantages`` of all trees; float64 [nodes, trees], 0 for nodes that are not there."""
    advantages, asked = np.zeros_like(values), sample.asked()
    for parent, children in enumerate(sample.children()):
        trained = [c for c in children if sample.shape[c - 1].trainable]
        if not trained:
            continue
        siblings, own = values[trained], asked[trained]
        centred = siblings - siblings.mean(axis=0, where=own)
        match params.advantage.type:
            case "difference":
                advantages[trained] = np.where(np.isnan(values[parent]), 0, siblings - values[parent])
            case "leave_one_out":
                advantages[trained] = centred * own.sum(axis=0) / (own.sum(axis=0) - 1)
            case "group_normalized":
                advantages[trained] = centred / (siblings.std(axis=0, where=own) + STD_EPSILON)
    return np.where(sample.sampled(), advantages, 0)


def gradients(sample: Sample, advantages: np.ndarray, facts: np.ndarray | None) -> np.ndarray:
    """Sum over trained tokens of advantage times score; float32 [trees, logits of decisions or facts, then of coins].

    ``facts`` int [trees, decisions] says which fact a decision is about; None: each is its own.
    """
    setting = sample.setting
    decisions = np.zeros((advantages.shape[1], setting.decisions), np.float32)
    style = np.zeros((advantages.shape[1], setting.coins), np.float32)
    for index, segment in enumerate(sample.shape, start=1):
        if segment.trainable:
            of_tree = advantages[index, :, None].astype(np.float32)
            decisions[:, segment.start : segment.stop] += of_tree * (
                sample.right[index - 1] - np.float32(1 - setting.eps)
            )
            heads = sample.coins[index - 1].sum(axis=1, dtype=np.float32)
            style += of_tree * (heads - np.float32((segment.stop - segment.start) / 2))
    if facts is not None:
        of_facts = np.zeros((len(decisions), setting.logits), np.float32)
        np.add.at(of_facts, (np.arange(len(facts))[:, None], facts), decisions)
        decisions = of_facts
    return np.concatenate([decisions, style], axis=1)
