"""Choice of a run's questions: those whose prompts fit, each once before any is asked again, in an order drawn from the
seed."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spo_core.config import Params, SkipSolvedParams
from spo_core.errors import DataError
from spo_core.problems.base import ProblemSet, Question
from spo_core.problems.mixture import encode_questions, parts_of, set_of, weights_of
from spo_core.rollout.seeds import derive_seed
from spo_core.tree import RolloutTree
from spo_core.verify import Outcome

log = logging.getLogger(__name__)


@dataclass(slots=True)
class QuestionOrder:
    """The endless order in which a run asks its questions: each once an epoch, permuted anew by the seed. Those that
    ``skip`` leaves out are passed over. ``state`` is all that changes."""

    rows: Sequence[Question]
    seed: int
    skip: SkipSolvedParams | None = None
    position: int = 0
    """Questions passed so far, asked or left out."""
    solved: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By question: how often in a row it was solved up to now, and in which iteration it was asked last."""

    def draw(self, count: int, iteration: int, without: Collection[str] = ()) -> list[Question]:
        """Draw the next questions. ``without`` those of the iteration that were asked already, fewer come where no
        others are there. Where solved ones are left out none comes twice, and some of them come where all others do."""
        drawn: list[Question] = []
        left_out: dict[Question, None] = {}
        once = bool(without) or self.skip is not None
        orders: dict[int, np.ndarray] = {}
        passed = 0
        while len(drawn) < count and passed < 2 * len(self.rows):  # in so many places every question stands once
            epoch, place = divmod(self.position, len(self.rows))
            if epoch not in orders:
                rng = np.random.default_rng(derive_seed(self.seed, "questions", epoch))
                orders[epoch] = rng.permutation(len(self.rows))
            row = self.rows[orders[epoch][place]]
            self.position += 1
            passed += 1
            if row.question_id in without or (once and row in drawn):
                continue
            if self.left_out(row.question_id, iteration):
                left_out[row] = None
                continue
            drawn.append(row)
            passed = 0
        return drawn if without else drawn + list(left_out)[: count - len(drawn)]

    def left_out(self, question_id: str, iteration: int) -> bool:
        """Whether a question was solved often enough, and not too long ago."""
        if self.skip is None:
            return False
        times, last = self.solved.get(question_id, (0, 0))
        return times >= self.skip.after and iteration - last < self.skip.iterations

    def learn(self, trees: Sequence[RolloutTree], iteration: int) -> None:
        """Take note of which questions were solved in an iteration."""
        for tree in trees if self.skip is not None else ():
            times, _ = self.solved.get(tree.question_id, (0, 0))
            self.solved[tree.question_id] = (times + 1 if all_right(tree) else 0, iteration)

    @property
    def state(self) -> dict[str, Any]:
        """What ``restore`` takes, as plain JSON."""
        return {"position": self.position, "solved": {k: list(v) for k, v in self.solved.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.position = state["position"]
        self.solved = {question: (times, last) for question, (times, last) in state["solved"].items()}


class MixedOrder:
    """The order of a mixture: every set has its own, and of the next questions each comes from the set that is farthest
    behind its share. It has the members of QuestionOrder."""

    def __init__(self, orders: Mapping[str, QuestionOrder], weights: Mapping[str, float]) -> None:
        self.orders, self.weights = dict(orders), dict(weights)
        self.asked = dict.fromkeys(self.orders, 0)

    def draw(self, count: int, iteration: int, without: Collection[str] = ()) -> list[Question]:
        """Draw as QuestionOrder does; where a set has too few, the others give more."""
        found: list[Question] = []
        orders = dict(self.orders)
        while len(found) < count and orders:
            turns = [self._turn(orders) for _ in range(count - len(found))]
            taken = {*without, *(row.question_id for row in found)}
            drawn = {
                name: iter(orders[name].draw(turns.count(name), iteration, taken)) for name in dict.fromkeys(turns)
            }
            for name in turns:
                row = next(drawn[name], None)
                if row is not None:
                    found.append(row)
                    continue
                self.asked[name] -= 1
                orders.pop(name, None)
        return found

    def _turn(self, orders: Collection[str]) -> str:
        """The set, among ``orders``, that is farthest behind its share; it is counted as asked."""
        name = min(orders, key=lambda n: (self.asked[n] + 1) / self.weights[n])
        self.asked[name] += 1
        return name

    def left_out(self, question_id: str, iteration: int) -> bool:
        return any(order.left_out(question_id, iteration) for order in self.orders.values())

    def learn(self, trees: Sequence[RolloutTree], iteration: int) -> None:
        for order in self.orders.values():
            own = {row.question_id for row in order.rows}
            order.learn([tree for tree in trees if tree.question_id in own], iteration)

    @property
    def state(self) -> dict[str, Any]:
        return {"asked": self.asked, "orders": {name: order.state for name, order in self.orders.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.asked = dict(state["asked"])
        for name, own in state["orders"].items():
            self.orders[name].restore(own)


def question_order(params: Params, problem: ProblemSet, rows: Sequence[Question]) -> QuestionOrder | MixedOrder:
    """The order in which a run asks its questions. Raises DataError for a set of a mixture without any."""
    seed, skip, weights = params.run.seed, params.rollout.skip_solved, weights_of(params.data)
    orders = {}
    for part in parts_of(problem):
        own = [row for row in rows if set_of(problem, row.question_id) is part]
        if not own:
            raise DataError(
                f"{part.name}: no question is left to train on; see data.mixture and data.max_question_tokens"
            )
        orders[part.name] = QuestionOrder(own, seed, skip)
    return MixedOrder(orders, weights) if len(orders) > 1 else next(iter(orders.values()))


def all_right(tree: RolloutTree) -> bool:
    """Whether every response of a tree, value rollouts left out, is right."""
    leaves = [tree.nodes[leaf] for leaf in tree.leaves]
    return all(leaf.outcome == Outcome.CORRECT for leaf in leaves if leaf.trainable)


def uniform(tree: RolloutTree) -> bool:
    """Whether all responses of a tree, value rollouts included, have one reward: then all its values are equal."""
    return len({tree.nodes[leaf].reward for leaf in tree.leaves}) == 1


def fitting_questions(
    params: Params, problem: ProblemSet, tokenizer: Any, model: Any, rows: list[Question], validation: list[Question]
) -> tuple[list[Question], list[Question], dict[str, list[int]]]:
    """Leave out questions beyond ``data.max_question_tokens``, and say how many; what is left of both splits, and the
    token ids of every prompt by its question.

    Raises DataError where too few are left, and for the first question whose prompt leaves no room for a completion or
    holds a token that the policy does not know.
    """
    most = params.data.max_question_tokens
    if most is not None:
        rows = _short_enough(rows, "train", params.rollout.questions, most, tokenizer)
        validation = _short_enough(validation, "validation", 1, most, tokenizer)
    for part in parts_of(problem):
        if validation and not any(set_of(problem, row.question_id) is part for row in validation):
            raise DataError(
                f"{part.name}: no question is left to validate on; see data.mixture and data.max_question_tokens"
            )
    limit, known = params.rollout.shortest_context, model.config.get_text_config().vocab_size
    every = {row.question: row for row in [*rows, *validation]}
    asked = {question: row.question_id for question, row in every.items()}
    prompts = dict(zip(asked, encode_questions(problem, tokenizer, list(every.values())), strict=True))
    for question, ids in prompts.items():
        if len(ids) >= limit:
            raise DataError(
                f"question {asked[question]}: its prompt has {len(ids)} tokens, rollout.context_length is {limit}; "
                "raise it, or leave long questions out with data.max_question_tokens"
            )
        if max(ids) >= known:
            token = tokenizer.convert_ids_to_tokens(max(ids))
            raise DataError(
                f"question {asked[question]}: token {token!r} of its prompt has id {max(ids)}, the policy knows "
                f"{known} tokens: tokenizer and weights do not belong together"
            )
    return rows, validation, prompts


def _short_enough(rows: list[Question], split: str, fewest: int, most: int, tokenizer: Any) -> list[Question]:
    """Keep the questions of at most ``most`` tokens, the template not counted."""
    texts = [row.question for row in rows]
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    kept = [row for row, ids in zip(rows, encoded, strict=True) if len(ids) <= most]
    log.log(
        logging.WARNING if len(kept) < len(rows) else logging.INFO,
        "data.max_question_tokens %d leaves out %d of %d questions of split %s",
        most,
        len(rows) - len(kept),
        len(rows),
        split,
    )
    if len(kept) < fewest:
        raise DataError(
            f"data.max_question_tokens {most} leaves {len(kept)} questions of split {split}, fewer than {fewest}"
        )
    return kept
