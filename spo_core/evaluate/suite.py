"""The cells of a suite, problem sets × contexts, and the questions of each."""

from __future__ import annotations

from dataclasses import dataclass

from spo_core.config import DataParams, Params, VerifyParams
from spo_core.errors import ConfigError, DataError
from spo_core.paths import Paths
from spo_core.problems import problem_set
from spo_core.problems.base import ProblemSet, Question, read_split
from spo_core.problems.mixture import grader_of, weights_of


@dataclass(frozen=True, slots=True)
class Cell:
    """One problem set in one context."""

    problem_set: str
    context: str
    context_length: int
    """Most tokens a completion may have, the stop token included."""

    @property
    def name(self) -> str:
        """Name of the cell, as in ``metrics/evaluate/<checkpoint>/<name>.json``."""
        return f"{self.problem_set}-{self.context}"


def graded_as(params: Params, name: str) -> VerifyParams:
    """How completions of a problem set are graded: by the grader of its place in a mixture, else the run's."""
    return params.verify.model_copy(update={"grader": grader_of(params.data, name, params.verify.grader)})


def cells(params: Params) -> list[Cell]:
    """All cells of a suite, problem set by problem set, contexts in the order of ``evaluate.contexts``."""
    names = params.evaluate.problem_sets or tuple(weights_of(params.data))
    return [Cell(name, context, n) for name in names for context, n in params.evaluate.contexts.items()]


def find_cell(params: Params, name: str) -> Cell:
    """The cell of that name. Raises ConfigError, naming all cells, for an unknown one."""
    known = {cell.name: cell for cell in cells(params)}
    if name not in known:
        raise ConfigError(f"--cell {name}: suite {params.evaluate.suite} has no such cell, but {', '.join(known)}")
    return known[name]


def evaluated_set(params: Params, name: str) -> ProblemSet:
    """The problem set of a cell, with the suite's template or else that of training. Raises ConfigError where one is
    unknown."""
    data, template = _own_data(params.data, name), params.evaluate.template
    if name != data.problem_set:
        source = params.evaluate.sources.get(name)
        data = DataParams(
            problem_set=name,
            source=source,
            template=template or data.template,
            chat=None if template else data.chat,
            arithmetic=data.arithmetic,
        )
    elif template is not None and data.jsonl is None:
        data = data.model_copy(update={"template": template, "chat": None})
    return problem_set(data)


def _own_data(data: DataParams, name: str) -> DataParams:
    """``data``, or where it is a mixture with a set of that name, that set's."""
    return next((part.data for part in data.mixture if part.data.problem_set == name), data)


def suite_questions(params: Params, paths: Paths, name: str) -> list[Question]:
    """Test questions of a problem set, at most ``evaluate.questions``: from the prepared split of the run's own set,
    if there is one, else from files or the hub. Raises DataError where they cannot be read."""
    prepared = paths.data(params.data.problem_set)
    if name in weights_of(params.data) and (prepared / "test.jsonl").is_file():
        rows = read_split(prepared, "test")
        if params.data.mixture:
            rows = [row for row in rows if row.question_id.startswith(f"{name}-")]
    else:
        rows = evaluated_set(params, name).test()
    if not rows:
        raise DataError(f"{name}: its test split holds no question")
    return rows[: params.evaluate.questions]
