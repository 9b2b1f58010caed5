"""Pages of evaluations and of the laboratory's results."""

from __future__ import annotations

import math
from typing import Any

from fastapi import APIRouter
from jinja2 import UndefinedError
from markupsafe import Markup
from starlette.responses import Response

from spo_core.config import flatten
from spo_core.errors import DataError
from spo_core.evaluate.lighteval.details import Sample
from spo_core.system.files import read_json
from spo_core.verify import Outcome
from spo_core.view.rendering import data, page, table
from spo_core.view.run_pages import Csv, Project
from spo_core.view.scored import WRONG, Scored, chosen_samples, find_one, find_scored, flips, questions_asked

router = APIRouter()
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, UndefinedError)
"""Errors that a file of another revision, or a damaged one, leads to."""
PAGE = 50  # completions, or flipped questions, of one page


@router.get("/evaluation")
def evaluations_page(paths: Project, csv: Csv = "") -> Response:
    """Every evaluated cell over its policies."""
    every = find_scored(paths)
    if csv:
        columns = ("run", "policy", "cell", "context_length", "accuracy", "standard_error", "truncated", "no_answer")
        return table("evaluation", columns, [row for scored in every for row in _score_rows(scored)])
    return page("evaluations.html", every=every)


def _score_rows(scored: Scored) -> list[list[Any]]:
    found = [(policy, cell, scored.score(policy, cell)) for policy in scored.policies for cell in scored.cells]
    return [
        [scored.key, policy, cell, s.protocol.context_length, s.accuracy, s.standard_error, s.truncated, s.no_answer]
        for policy, cell, s in found
        if s is not None
    ]


@router.get("/evaluation/{place}/{name}")
def cell_page(
    paths: Project,
    place: str,
    name: str,
    cell: str,
    policy: str,
    only: str = "all",
    q: str = "",
    number: int = 1,
    csv: Csv = "",
) -> Response:
    """Every completion of a policy in a cell, those first that the two graders disagree about."""
    scored = find_one(paths, f"{place}/{name}")
    every = scored.samples(policy, cell)
    samples = chosen_samples(every, only, q)
    score = scored.score(policy, cell)
    asked = questions_asked(paths, scored.key, score.protocol.problem_set, every) if score else {}
    if csv:
        columns = ("question_id", "question", "sample", "completion", "gold", "given", "outcome", "lighteval", "tokens")
        return table(f"{name}-{policy}-{cell}", columns, [_sample_cells(s, asked) for s in samples])
    pages = max(1, math.ceil(len(samples) / PAGE))
    number = min(max(1, number), pages)
    return page(
        "cell.html",
        scored=scored,
        cell=cell,
        policy=policy,
        score=score,
        samples=samples[PAGE * (number - 1) : PAGE * number],
        found=len(samples),
        counts={key: sum(map(test, every)) for key, test in WRONG.items()},
        only=only,
        q=q,
        asked=asked,
        number=number,
        pages=pages,
        others=[p for p in scored.policies if p != policy and cell in scored.files[p]],
    )


def _sample_cells(s: Sample, asked: dict[str, str]) -> list[Any]:
    question = asked.get(s.question_id, "")
    return [s.question_id, question, s.sample, s.completion, s.gold, s.given, str(s.outcome), s.lighteval, s.tokens]


@router.get("/evaluation/{place}/{name}/flips")
def flips_page(
    paths: Project, place: str, name: str, cell: str, a: str, b: str, number: int = 1, csv: Csv = ""
) -> Response:
    """Two policies side by side on the questions that one of them answers correctly more often."""
    scored = find_one(paths, f"{place}/{name}")
    every = scored.samples(a, cell)
    found = flips(every, scored.samples(b, cell))
    score = scored.score(a, cell)
    asked = questions_asked(paths, scored.key, score.protocol.problem_set, every) if score else {}
    if csv:
        rows = [(f.question_id, asked.get(f.question_id, ""), f.gold, f.before, f.after) for f in found]
        return table(f"{name}-{cell}-{a}-{b}", ("question_id", "question", "gold", a, b), rows)
    pages = max(1, math.ceil(len(found) / PAGE))
    number = min(max(1, number), pages)
    return page(
        "flips.html",
        scored=scored,
        cell=cell,
        a=a,
        b=b,
        flips=found[PAGE * (number - 1) : PAGE * number],
        lost=sum(f.after < f.before for f in found),
        won=sum(f.after > f.before for f in found),
        asked=asked,
        number=number,
        pages=pages,
        correct=Outcome.CORRECT,
    )


@router.get("/analysis")
def analyses_page(paths: Project) -> Response:
    """All analyses of the laboratory."""
    rows = []
    for name, file in _analyses(paths).items():
        try:
            result = read_json(file)
            row = {"model": str(result["model"]), "candidates": len(result["candidates"])}
            rows.append(row | {"name": name, "recommendations": list(map(str, result["recommendations"]))})
        except UNREADABLE:
            rows.append({"name": name, "model": "", "recommendations": ["cannot be read"], "candidates": 0})
    return page("analyses.html", rows=rows)


@router.get("/analysis/{name:path}/data.json")
def analysis_data(paths: Project, name: str) -> Response:
    """All numbers of an analysis."""
    return data(_read_analysis(paths, name))


@router.get("/analysis/{name:path}")
def analysis_page(paths: Project, name: str) -> Response:
    """One analysis, as the laboratory's own page has it."""
    from spo_core.observe.analysis_page import calibration, critic_line, estimate  # here: matplotlib takes a second

    result = _read_analysis(paths, name)
    try:
        return page(
            "analysis_view.html",
            name=name,
            result=result,
            estimate=estimate,
            critic_line=critic_line,
            calibration=Markup(calibration(result)),  # its text is escaped there
            provenance=flatten(result["provenance"]),
        )
    except UNREADABLE:
        raise _unreadable(name) from None


def _read_analysis(paths: Project, name: str) -> Any:
    """What an analysis wrote. Raises DataError where there is none of the name, or it is damaged."""
    files = _analyses(paths)
    if name not in files:
        raise DataError(f"{name}: no such analysis below reports/analysis")
    try:
        return read_json(files[name])
    except (OSError, ValueError):
        raise _unreadable(name) from None


def _unreadable(name: str) -> DataError:
    return DataError(f"{name}: damaged, or written by another revision; python -m flows.analyse writes it again")


def _analyses(paths: Project) -> dict[str, Any]:
    """Files of analyses of one policy, by folder; those of several stand in a folder with a page over them."""
    root = paths.root / "reports" / "analysis"
    found = sorted(root.glob("**/analysis.json"))
    return {p.parent.relative_to(root).as_posix(): p for p in found if not any(p.parent.glob("*/analysis.json"))}
