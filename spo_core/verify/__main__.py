"""``python -m spo_core.verify PAIRS.jsonl``: one JSON outcome a line, in the order of the pairs."""

from __future__ import annotations

import json
from typing import Annotated, Any, get_args

import typer

from spo_core.config import DataParams, GraderName, VerifyParams
from spo_core.config.verify import MOST_WORKERS
from spo_core.errors import ConfigError, DataError
from spo_core.problems import problem_set
from spo_core.problems.answers import unusable_gold
from spo_core.problems.base import ProblemSet
from spo_core.system.command_line import read_lines, run
from spo_core.system.files import parse_json
from spo_core.verify.outcome import Verdict
from spo_core.verify.rules import check_grader, rule
from spo_core.verify.verifier import Verifier

BATCH = 256  # pairs compared before their outcomes are printed
KEYS = ("given", "completion", "gold")
FORM = '{"given": ..., "gold": ...} or {"completion": ..., "gold": ...}, of texts or numbers'


def command(
    pairs: Annotated[str, typer.Argument(help=f"A file of lines {FORM}; - reads standard input.")],
    problem: Annotated[str, typer.Option("--problem-set", help="Whose answers they are.")] = "math",
    grader: Annotated[str, typer.Option(help=", ".join(get_args(GraderName)))] = "exact",
    seconds: Annotated[float, typer.Option(min=0.01, max=3600, help="Wall-clock limit for one answer.")] = 5.0,
    workers: Annotated[int, typer.Option(min=1, max=MOST_WORKERS, help="Processes that compare.")] = 2,
) -> None:
    """Grade answers, or the answers stated in completions, against gold answers."""
    if grader not in get_args(GraderName):
        raise ConfigError(f"--grader {grader!r}: there are {', '.join(get_args(GraderName))}")
    chosen = problem_set(DataParams(problem_set=problem))
    params = VerifyParams.model_validate({"grader": grader, "seconds": seconds, "workers": workers})
    check_grader(chosen, params.grader)
    rows = read_pairs(pairs)
    with Verifier(params) as verifier:
        for start in range(0, len(rows), BATCH):
            for verdict in grade_rows(verifier, chosen, rows[start : start + BATCH]):
                print(json.dumps({"outcome": verdict.outcome, "given": verdict.given}), flush=True)


def read_pairs(path: str) -> list[dict[str, str]]:
    """Read all lines of a file of pairs; raises DataError for the first that is no pair."""
    rows = []
    for _, where, line in read_lines(path):
        try:
            row = parse_json(line)
        except ValueError as error:
            raise DataError(f"{where}: not JSON: {error}") from None
        found = {key: _text(row[key]) for key in KEYS if key in row} if isinstance(row, dict) else {}
        if None in found.values() or found.keys() not in ({"given", "gold"}, {"completion", "gold"}):
            raise DataError(f"{where}: not {FORM}")
        if (why := unusable_gold(found["gold"] or "")) is not None:
            raise DataError(f"{where}: its gold {why}")
        rows.append({key: text for key, text in found.items() if text is not None})
    return rows


def _text(value: Any) -> str | None:
    """Return a text as it is, a number as it is written, None for anything else."""
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None


def grade_rows(verifier: Verifier, problem: ProblemSet, rows: list[dict[str, str]]) -> list[Verdict]:
    """Give a verdict on each row, in order."""
    name = rule(problem, verifier.params.grader)
    given = [row for row in rows if "given" in row]
    compared = iter(verifier.compare([(name, row["given"], row["gold"]) for row in given]))
    graded = iter(verifier.grade(problem, [(r["completion"], r["gold"]) for r in rows if "completion" in r]))
    return [Verdict(next(compared), row["given"]) if "given" in row else next(graded) for row in rows]


if __name__ == "__main__":
    run(command)
