"""The essentials on a terminal: a run, an iteration's questions, a question's tree."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from spo_core.errors import DataError
from spo_core.observe.formatting import number, one_line, signed, visible
from spo_core.paths import Paths
from spo_core.view import iterations, trees
from spo_core.view.catalogue import Run, planned_iterations, written
from spo_core.view.health import signs
from spo_core.view.rendering import ago, percent, size
from spo_core.view.texts import texts_of

SHOWN = 12  # iterations of a run's table
MOST_ROWS = 400  # segments of a tree


def print_view(paths: Paths, run: Run, iteration: int | None, question: str | None, console: Console) -> None:
    """Print a run; with ``iteration`` its questions instead, with ``question`` that question's tree, in the last
    iteration that has one unless one is named. Others' text is printed as text.

    Raises DataError for an iteration or question that is not there.
    """
    if question is not None:
        parts = _tree(paths, run, iteration, question)
    elif iteration is not None:
        parts = _iteration(run, iteration)
    else:
        parts = _run(paths, run)
    for part in parts:
        console.print(part)


def _run(paths: Paths, run: Run) -> Iterator[RenderableType]:
    rows, kept = run.rows(), run.iteration_folders()
    last = rows[-1] if rows else {}
    planned = planned_iterations(run, paths.root) if run.running else None
    of = f" of {planned}" if planned else ""
    yield Text(
        f"{visible(run.title)} ({visible(run.key)}): {run.state}, {last.get('iteration', 0)}{of} iterations, "
        f"{size(last.get('generated_tokens'))} tokens; written {ago(written(run))}"
    )
    silent = None
    for folder in reversed(kept.values()):
        if (folder / iterations.CREDITS).is_file():
            silent = iterations.silent_share(iterations.question_rows(folder))
            break
    health = _table("health", "now", "threshold", "")
    for sign in signs(rows, run.params, silent):
        mark = "" if sign.well is None else "ok" if sign.well else "look"
        health.add_row(sign.name, sign.shown, sign.threshold, Text(mark, "bold red" if mark == "look" else ""))
    yield health
    table = _table("iteration", "reward", "validation", "tokens", "with advantage", "trees")
    for row in rows[-SHOWN:]:
        table.add_row(
            str(row["iteration"]),
            number(row.get("rollout/reward")),
            number(row.get("eval/validation_accuracy")),
            size(row.get("rollout/generated_tokens")),
            number(row.get("credit/segments_with_advantage")),
            "kept" if row["iteration"] in kept else "",
        )
    yield table


def _folder(run: Run, number: int) -> tuple[int, dict]:
    folders = run.iteration_folders()
    if number not in folders:
        there = ", ".join(map(str, list(folders)[-SHOWN:])) or "none"
        raise DataError(f"--iteration {number}: {run.key} does not keep it; it keeps {there}")
    return number, folders


def _iteration(run: Run, number_: int) -> Iterator[RenderableType]:
    number_, folders = _folder(run, number_)
    yield Text(f"{visible(run.title)}, iteration {number_}")
    table = _table("id", "question", "right", "V", "spread", "signal", "largest A", "tokens", "cut off", "seconds")
    for row in iterations.question_rows(folders[number_]):
        table.add_row(
            Text(row.asked.shown_id),
            Text(one_line(row.asked.question)),
            number(row.correct, 2),
            number(row.value, 2),
            number(row.spread, 2),
            number(row.signal, 2),
            signed(row.strongest, 2),
            number(row.tokens, 0),
            percent(row.truncated),
            number(row.seconds.sampling + row.seconds.grading if row.seconds else None, 2),
        )
    yield table


def _tree(paths: Paths, run: Run, iteration: int | None, question: str) -> Iterator[RenderableType]:
    folders = run.iteration_folders()
    if iteration is not None:
        _folder(run, iteration)
    candidates = [iteration] if iteration is not None else list(reversed(folders))
    for candidate in candidates:
        asked = {row.shown_id: row for row in iterations.read_questions(folders[candidate])}
        if question in asked and (folders[candidate] / iterations.TREES).is_file():
            break
    else:
        where = f"iteration {iteration}" if iteration is not None else "any iteration with trees"
        raise DataError(f"--question {question}: not in {where} of {run.key}")
    tree, credit = iterations.read_pair(folders[candidate], question)
    texts = texts_of(run, paths)
    page = trees.tree_page(tree, credit, texts, run.params, asked[question].question)
    yield Text(f"{visible(asked[question].question)}  (gold {one_line(asked[question].answer)}), iteration {candidate}")
    root = Tree(Text(f"V {number(page.value, 2)}  {page.responses} responses, {page.correct} correct"))
    branches: dict[int, Tree] = {-1: root}
    for row in page.rows[:MOST_ROWS]:
        branches[row.level] = branches[row.level - 1].add(
            _segment(row, texts.decode(tree.nodes[row.index].token_ids.tolist()))
        )
    yield root
    if len(page.rows) > MOST_ROWS:
        yield Text(f"the first {MOST_ROWS} of {len(page.rows)} segments; the page in a browser has all")


def _segment(row: trees.TreeRow, text: str) -> Text:
    line = Text(f"V {number(row.value, 2)} ")
    style = "blue" if row.advantage > 0 else "dark_orange" if row.advantage < 0 else "dim"
    line.append(f"A {signed(row.advantage, 2)}  ", "dim" if math.isnan(row.advantage) else style)
    line.append(text.replace("\n", "⏎"), style if row.trains else "")
    if row.outcome:
        line.append(f"  {row.outcome.replace('_', ' ')}", "bold green" if row.outcome == "correct" else "red")
    if row.fan:
        line.append(f"  {sum(row.fan.values())} value rollouts, {row.fan.get('correct', 0)} correct", "dim")
    if row.mistake:
        line.append("  first wrong step", "red")
    return line


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 or column in ("question", "trees", "") else "right")
    return table
