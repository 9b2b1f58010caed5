"""Reads an iteration: its questions with what was sampled for each, and the completions that hold a text."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from spo_core.credit import Credit, read_credits
from spo_core.credit.pairs import CreditedTree, read_places
from spo_core.errors import DataError
from spo_core.observe.formatting import visible
from spo_core.observe.tree_view import Decode
from spo_core.rollout.seconds import QuestionSeconds
from spo_core.runs.directory import SECONDS
from spo_core.system.files import read_json
from spo_core.tree import FinishReason, RolloutTree, read_trees
from spo_core.verify import Outcome

SEARCH_SECONDS = 5.0  # decoding a large iteration takes minutes; a search says how far it came
Read = TypeVar("Read")
Stamps = tuple[int | None, ...]  # when trees and credits were written; None for what is not there
TREES, CREDITS, QUESTIONS = "trees.parquet", "credits.parquet", "questions.json"


@dataclass(frozen=True, slots=True)
class Asked:
    """A question of an iteration, as its row of questions.json has it."""

    question_id: str
    question: str
    answer: str

    @property
    def shown_id(self) -> str:
        """The id as pages show it, and as their addresses have it."""
        return visible(self.question_id)


@dataclass(frozen=True, slots=True)
class QuestionRow:
    """A question and what was sampled for it. Shares are of the responses that are trained on."""

    asked: Asked
    responses: int
    correct: float
    value: float
    """Value of the prompt, NaN where it was not estimated."""
    spread: float
    """Standard deviation of the values of the tree's other states; NaN where there are fewer than two."""
    signal: float
    """Share of segments that change the policy; NaN before credit is computed."""
    strongest: float
    """Advantage of the largest size, with its sign; NaN before credit is computed."""
    tokens: int
    truncated: float
    no_answer: float
    unparsable: float
    timeout: float
    seconds: QuestionSeconds | None
    """How long it took; None where that is in no file, as of a replay."""


FILTERS: dict[str, Callable[[QuestionRow], bool]] = {
    "all": lambda row: True,
    "all wrong": lambda row: row.correct == 0,
    "all right": lambda row: row.correct == 1,
    "split": lambda row: 0 < row.correct < 1,
    "truncated": lambda row: row.truncated > 0,
    "no answer": lambda row: row.no_answer > 0,
    "unparsable": lambda row: row.unparsable > 0,
    "timeouts": lambda row: row.timeout > 0,
    "no signal": lambda row: row.signal == 0,
}
SORTS: dict[str, Callable[[QuestionRow], float]] = {
    "accuracy": lambda row: row.correct,
    "spread": lambda row: -_or_zero(row.spread),
    "signal": lambda row: -_or_zero(row.signal),
    "largest advantage": lambda row: -abs(_or_zero(row.strongest)),
    "tokens": lambda row: -row.tokens,
    "truncated": lambda row: -row.truncated,
    "seconds": lambda row: -(row.seconds.sampling + row.seconds.grading) if row.seconds else 0.0,
}


@dataclass(frozen=True, slots=True)
class Found:
    """A continuation that holds the text looked for, and the text around the place."""

    asked: Asked
    segment: int
    """Its last segment that the tree's page has; 0 where it has none."""
    value_rollout: bool
    """Whether it ends in a value rollout, which the page of the tree only counts."""
    outcome: str
    before: str
    match: str
    behind: str


@dataclass(frozen=True, slots=True)
class Search:
    found: list[Found]
    searched: int
    """Trees that were looked through before the time was over."""
    trees: int


def read_questions(folder: Path) -> list[Asked]:
    """Questions of an iteration in the order they were drawn."""
    rows = read_json(folder / QUESTIONS)
    return [Asked(row["question_id"], row["question"], row["answer"]) for row in rows]


def read_seconds(folder: Path) -> list[QuestionSeconds]:
    """How long each question of an iteration took, in the order of its trees; empty where that is in no file."""
    file = folder / SECONDS
    return [QuestionSeconds(**own) for own in read_json(file)] if file.is_file() else []


def read_pairs_so_far(folder: Path) -> list[CreditedTree]:
    """Trees of an iteration with their credit; where that is not there yet, with values of NaN and no advantage.

    Raises DataError where the iteration keeps no trees, or they are being written.
    """
    return _read(folder, _read_pairs)


def _read(folder: Path, reader: Callable[..., Read], *further: str) -> Read:
    trees, credits = folder / TREES, folder / CREDITS
    if not trees.is_file():
        raise DataError(
            f"{folder.name}: its trees are not kept; run.keep_rollouts says for how many iterations they are"
        )
    stamps = tuple(p.stat().st_mtime_ns if p.is_file() else None for p in (trees, credits))
    try:
        return reader(folder, stamps, *further)
    except (pa.ArrowInvalid, OSError):
        raise DataError(f"{folder.name}: its trees are being written; ask again in a moment") from None


@lru_cache(maxsize=4)
def _read_pairs(folder: Path, stamps: Stamps) -> list[CreditedTree]:
    return _pairs(folder, stamps)


@lru_cache(maxsize=16)
def _read_pair(folder: Path, stamps: Stamps, question_id: str) -> CreditedTree | None:
    """The tree of one question, read alone."""
    for question, rows in read_places(folder / TREES):
        if visible(question) == question_id:
            return _pairs(folder, stamps, rows)[0]
    return None


def _pairs(folder: Path, stamps: Stamps, rows: range | None = None) -> list[CreditedTree]:
    trees = read_trees(folder / TREES, rows)
    if stamps[1] is None:
        return [(tree, _no_credit(tree)) for tree in trees]
    return list(zip(trees, read_credits(folder / CREDITS, trees, rows), strict=True))


def _no_credit(tree: RolloutTree) -> Credit:
    return Credit(
        np.full(len(tree.nodes), np.nan),
        tuple(np.zeros(len(node.token_ids), np.float32) for node in tree.nodes),
        tuple(np.zeros(len(node.token_ids), bool) for node in tree.nodes),
    )


def read_pair(folder: Path, question_id: str) -> CreditedTree:
    """The tree of one question, by its id as pages show it. Raises DataError for a question that was not asked."""
    pair = _read(folder, _read_pair, question_id)
    if pair is None:
        raise DataError(f"{folder.name}: no tree of question {question_id!r}")
    return pair


def question_rows(folder: Path) -> list[QuestionRow]:
    """A row for each tree, in the order of the iteration."""
    asked = {row.question_id: row for row in read_questions(folder)}
    credited = (folder / CREDITS).is_file()  # asked before they are read: what is written meanwhile counts as missing
    pairs, seconds = read_pairs_so_far(folder), read_seconds(folder)
    known = [own.question_id for own in seconds] == [tree.question_id for tree, _ in pairs]
    return [
        _row(tree, credit, asked.get(tree.question_id) or Asked(tree.question_id, "", ""), credited, own)
        for (tree, credit), own in zip(pairs, seconds if known else [None] * len(pairs), strict=True)
    ]


def _row(
    tree: RolloutTree, credit: Credit, asked: Asked, credited: bool, seconds: QuestionSeconds | None
) -> QuestionRow:
    leaves = [tree.nodes[i] for i in tree.leaves if tree.nodes[i].trainable]
    outcomes, count = Counter(leaf.outcome for leaf in leaves), max(1, len(leaves))
    trainable = [i for i, node in enumerate(tree.nodes) if node.trainable]
    values = credit.values[trainable]
    values = values[np.isfinite(values)]
    return QuestionRow(
        asked=asked,
        responses=len(leaves),
        correct=outcomes[Outcome.CORRECT] / count,
        value=float(credit.values[0]),
        spread=float(values.std()) if len(values) > 1 else float("nan"),
        signal=sum(map(credit.trains, trainable)) / max(1, len(trainable)) if credited else math.nan,
        strongest=max((credit.advantage(i) for i in trainable), key=abs, default=0.0) if credited else math.nan,
        tokens=tree.generated_tokens,
        truncated=sum(leaf.finish is FinishReason.LENGTH for leaf in leaves) / count,
        no_answer=outcomes[Outcome.NO_ANSWER] / count,
        unparsable=outcomes[Outcome.UNPARSABLE] / count,
        timeout=outcomes[Outcome.TIMEOUT] / count,
        seconds=seconds,
    )


def silent_share(rows: Sequence[QuestionRow]) -> float | None:
    """Share of questions that train nothing; None without any, and before credit is computed."""
    if not rows or any(math.isnan(row.signal) for row in rows):
        return None
    return sum(row.signal == 0 for row in rows) / len(rows)


def chosen(rows: Sequence[QuestionRow], only: str, sort: str) -> list[QuestionRow]:
    """The rows of one of FILTERS, in the order of one of SORTS, else as they are. Unknown names change nothing."""
    kept = [row for row in rows if FILTERS.get(only, FILTERS["all"])(row)]
    return sorted(kept, key=SORTS[sort]) if sort in SORTS else kept


def search(folder: Path, text: str, decode: Decode, around: int = 60) -> Search:
    """Continuations, responses and value rollouts, that hold ``text``, whatever its case, trees in order, for
    SEARCH_SECONDS at most."""
    asked = {row.question_id: row for row in read_questions(folder)}
    pairs, wanted = read_pairs_so_far(folder), re.compile(re.escape(text), re.IGNORECASE)
    found: list[Found] = []
    started, searched = time.monotonic(), 0
    for tree, _ in pairs:
        if time.monotonic() - started > SEARCH_SECONDS:
            break
        searched += 1
        question = asked.get(tree.question_id) or Asked(tree.question_id, "", "")
        for leaf in tree.leaves:
            completion = decode(tree.completion(leaf).tolist())
            if (match := wanted.search(completion)) is not None:
                at, end = match.span()
                found.append(
                    Found(
                        question,
                        next((i for i in reversed(tree.path(leaf)) if tree.nodes[i].trainable), 0),
                        not tree.nodes[leaf].trainable,
                        tree.nodes[leaf].outcome,
                        completion[max(0, at - around) : at],
                        match[0],
                        completion[end : end + around],
                    )
                )
    return Search(found, searched, len(pairs))


def _or_zero(value: float) -> float:
    return value if np.isfinite(value) else 0.0
