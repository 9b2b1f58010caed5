"""Pages of an iteration and of the trees that were sampled in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from spo_core.credit.pairs import CreditedTree
from spo_core.errors import DataError
from spo_core.observe.formatting import visible
from spo_core.paths import Paths
from spo_core.view import iterations, trees
from spo_core.view.catalogue import Run, find_run
from spo_core.view.iterations import FILTERS, SORTS, Asked
from spo_core.view.measured import measure
from spo_core.view.rendering import data, page, table
from spo_core.view.run_pages import Csv, Project
from spo_core.view.texts import Texts, texts_of

router = APIRouter(prefix="/run/{place}/{name}/iteration/{number}")
MOST_NODES = 400  # whose tokens one request may ask for
COLOURS = ("advantage", "probability", "entropy", "ratio", "value")


@dataclass(frozen=True, slots=True)
class Place:
    """An iteration of a run."""

    run: Run
    number: int
    folder: Path
    numbers: list[int]
    """Iterations of the run whose questions are kept."""

    def pair(self, question: str) -> tuple[CreditedTree, Asked]:
        """The tree of a question, named by its id as pages show it."""
        asked = {row.shown_id: row for row in iterations.read_questions(self.folder)}
        pair = iterations.read_pair(self.folder, visible(question))
        return pair, asked.get(visible(question)) or Asked(question, "", "")


def find_place(paths: Paths, place: str, name: str, number: int) -> Place:
    run = find_run(paths, f"{place}/{name}")
    folders = run.iteration_folders()
    if number not in folders:
        raise DataError(f"{run.key}: iteration {number} is not here; {len(folders)} are")
    return Place(run, number, folders[number], list(folders))


@router.get("")
def iteration_page(
    paths: Project, place: str, name: str, number: int, only: str = "all", sort: str = "", q: str = "", csv: Csv = ""
) -> Response:
    """An iteration's questions, some of them, in some order; and the responses that hold a text."""
    at = find_place(paths, place, name, number)
    every, q = iterations.question_rows(at.folder), visible(q)  # as completions are, which it is looked for in
    rows = iterations.chosen(every, only, sort)
    if csv:
        return table(f"{at.run.title}-iteration-{number}", _COLUMNS, map(_cells, rows))
    found = iterations.search(at.folder, q, texts_of(at.run, paths).decode) if q else None
    metrics: dict[str, Any] = next((row for row in at.run.rows() if row["iteration"] == number), {})
    return page(
        "iteration.html",
        run=at.run,
        number=number,
        numbers=at.numbers,
        rows=rows,
        total=len(every),
        counts={name: sum(map(test, every)) for name, test in FILTERS.items()},
        filters=list(FILTERS),
        sorts=list(SORTS),
        only=only,
        sort=sort,
        q=q,
        search=found,
        metrics=metrics,
        silent=iterations.silent_share(every),
    )


_COLUMNS = (
    *("question_id", "question", "answer", "responses", "correct", "value", "spread", "signal", "strongest_advantage"),
    *("tokens", "truncated", "no_answer", "unparsable", "timeout", "sampling_seconds", "grading_seconds"),
)


def _cells(row: iterations.QuestionRow) -> list[Any]:
    asked = row.asked
    shares = (row.truncated, row.no_answer, row.unparsable, row.timeout)
    numbers = (row.responses, row.correct, row.value, row.spread, row.signal, row.strongest, row.tokens)
    seconds = (row.seconds.sampling, row.seconds.grading) if row.seconds else (None, None)
    return [asked.question_id, asked.question, asked.answer, *numbers, *shares, *seconds]


@router.get("/tree")
def tree_page(
    paths: Project,
    place: str,
    name: str,
    number: int,
    question: str,
    colour: str = "advantage",
    beside: Annotated[str, Query(pattern=r"^\d*$")] = "",
    csv: Csv = "",
) -> Response:
    """The tree of a question, alone or beside that of another iteration."""
    at = find_place(paths, place, name, number)
    texts, question = texts_of(at.run, paths), visible(question)
    if csv:
        (tree, credit), _ = at.pair(question)
        title = f"{at.run.title}-iteration-{number}-{question}"
        return table(title, trees.NODE_COLUMNS, trees.node_cells(tree, credit, texts))
    panels = [_panel(at, question, texts)]
    if beside:
        panels.append(_panel(find_place(paths, place, name, int(beside)), question, texts))
    return page(
        "tree_page.html",
        run=at.run,
        number=number,
        question=question,
        panels=panels,
        colour=colour if colour in COLOURS else COLOURS[0],
        colours=COLOURS,
        beside=int(beside) if beside else None,
        others=[n for n in _with_question(at, question) if n != number],
        policies=list(at.run.policies()),
        near=_nearest(at),
    )


def _panel(at: Place, question: str, texts: Texts) -> dict[str, Any]:
    (tree, credit), asked = at.pair(question)
    return {
        "number": at.number,
        "tree": trees.tree_page(tree, credit, texts, at.run.params, asked.question),
        "asked": asked,
        "policy_version": tree.policy_version,
        "seconds": next((s for s in iterations.read_seconds(at.folder) if s.question_id == tree.question_id), None),
    }


def _with_question(at: Place, question: str) -> list[int]:
    """Iterations with a tree of the question."""
    folders = at.run.iteration_folders()
    return [
        n
        for n, folder in folders.items()
        if (folder / iterations.TREES).is_file()
        and any(row.shown_id == question for row in iterations.read_questions(folder))
    ]


def _nearest(at: Place) -> str | None:
    """The first checkpoint that this iteration's update is part of, else the last policy of all."""
    saved = [(int(n.partition("/")[2]), n) for n in at.run.policies() if n.startswith("checkpoints/")]
    later = [n for number, n in saved if number >= at.number]
    return next(iter([*later, *(n for _, n in reversed(saved)), *at.run.policies()]), None)


@router.get("/tokens.json")
def tokens(
    paths: Project,
    place: str,
    name: str,
    number: int,
    question: str,
    nodes: Annotated[str, Query(pattern=r"^\d+(,\d+)*$")],
    most: Annotated[int | None, Query(ge=1)] = None,
) -> Response:
    """Texts and numbers of the tokens of nodes, of each the first ``most``."""
    at = find_place(paths, place, name, number)
    (tree, credit), asked = at.pair(question)
    wanted = [int(node) for node in nodes.split(",")]
    if len(wanted) > MOST_NODES or max(wanted) >= len(tree.nodes):
        raise DataError(f"at most {MOST_NODES} nodes of {len(tree.nodes)} at once")
    texts = texts_of(at.run, paths)
    wrong = trees.mistakes(tree, texts, at.run.params, asked.question)
    return data(trees.token_blocks(tree, credit, texts, wrong, wanted, most))


@router.get("/measured.json")
def measured(paths: Project, place: str, name: str, number: int, question: str, policy: str) -> Response:
    """Entropy and ratio of the tree's tokens under a policy of the run."""
    at = find_place(paths, place, name, number)
    policies = at.run.policies()
    if policy not in policies:
        raise DataError(f"{policy}: no policy of {at.run.key} that is here")
    (tree, _), _ = at.pair(question)
    temperature = at.run.params.get("rollout.temperature")
    return data(measure(tree, policies[policy], float(temperature or 1.0)))
