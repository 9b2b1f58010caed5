"""Credit found: where the blame for a wrong response lies, on problems that know which step went wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spo_core.analysis.efficiency import Estimate
from spo_core.credit.pairs import CreditedTree
from spo_core.problems.base import Question, ShowsMistakes
from spo_core.verify import Outcome

MOST = 8  # wrong responses of a tree: the error is over questions, and decoding takes time
TokenTexts = Callable[[np.ndarray], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Found:
    """Mean shares, over wrong responses with any, of the negative credit before, on and behind the first wrong step.

    ``tokens_on`` is the share of all tokens that lie on it: what blame spread evenly would give. Errors are over
    questions. ``blamed`` of ``responses`` wrong ones have negative credit.
    """

    before: Estimate
    on: Estimate
    behind: Estimate
    tokens_on: Estimate
    blamed: int
    responses: int


def credit_found(
    pairs: Sequence[CreditedTree],
    problem: ShowsMistakes,
    rows: Mapping[str, Question],
    token_texts: TokenTexts,
) -> Found:
    """Look at the first MOST trained responses of each tree whose outcome is wrong. Credit is |advantage| of masked
    tokens where negative."""
    by_question: dict[str, list[list[float]]] = {}
    responses = 0
    for tree, credit in pairs:
        wrong = [i for i in tree.leaves if tree.nodes[i].trainable and tree.nodes[i].outcome == Outcome.WRONG]
        for leaf in wrong[:MOST]:
            texts = token_texts(tree.completion(leaf))
            ends = np.cumsum([len(text) for text in texts])
            step = problem.mistake(rows[tree.question_id].question, "".join(texts))
            if step is None:
                continue
            responses += 1
            path = tree.path(leaf)[1:]
            blame = np.concatenate([np.where(credit.masks[i], -np.minimum(credit.advantages[i], 0), 0) for i in path])
            places = (ends <= step[0], (ends > step[0]) & (ends <= step[1]), ends > step[1])  # before, on, behind
            if blame.sum() > 0:
                shares = [float(blame[place].sum() / blame.sum()) for place in places]
                by_question.setdefault(tree.question_id, []).append([*shares, float(places[1].mean())])
    means = np.array([np.mean(found, axis=0) for found in by_question.values()]).reshape(-1, 4)
    before, on, behind, tokens_on = (_over_questions(column) for column in means.T)
    return Found(before, on, behind, tokens_on, sum(map(len, by_question.values())), responses)


def _over_questions(values: np.ndarray) -> Estimate:
    n = len(values)
    if n < 2:
        return Estimate(float(values.mean()) if n else math.nan, math.nan)
    return Estimate(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n))
