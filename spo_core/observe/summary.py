"""The summary of a run, its table, and the page made from what the stages published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from spo_core.config import Params
from spo_core.credit.pairs import read_pairs
from spo_core.errors import DataError
from spo_core.observe.evaluations import (
    AFTER,
    BEFORE,
    Compared,
    Evaluations,
    compare_cells,
    evaluation_files,
    headline_cell,
    read_evaluations,
)
from spo_core.observe.report import ReportInputs, write_report
from spo_core.observe.tree_table import asked
from spo_core.observe.view_link import DEFAULT_PORT, HOST, invitation, run_address
from spo_core.paths import Paths
from spo_core.runs.directory import read_rows
from spo_core.system.files import atomic_directory, read_json, write_json


def check_report(params: Params, paths: Paths) -> None:
    """Raise DataError naming the first file that a stage has not published and the summary needs."""
    needed = [paths.metrics("train"), paths.training / "metrics.jsonl"]
    needed += [path for checkpoint in (BEFORE, AFTER) for path in evaluation_files(params, paths, checkpoint)]
    for path in needed:
        if not path.is_file():
            raise DataError(f"{path}: missing; train and evaluate first (python -m flows.experiment, or dvc repro)")


def summarize(paths: Paths, evaluations: Evaluations) -> dict[str, Any]:
    """Collect accuracy before and after (in the longest context of the first problem set), cells, seconds a stage,
    tokens.

    Differences are paired by question, and null where the two scores must not be compared.
    """
    compared = compare_cells(evaluations)
    cells = {name: _cell(evaluations, compared[name], name) for name in evaluations[AFTER]}
    headline = cells[headline_cell(evaluations[AFTER])]
    summary: dict[str, Any] = {}
    for label in ("before", "after"):
        summary[f"accuracy_{label}"] = headline[label]
        summary[f"standard_error_{label}"] = headline[f"standard_error_{label}"]
    summary |= {key: headline[key] for key in ("difference", "standard_error_difference")}
    summary["generated_tokens"] = read_json(paths.metrics("train"))["generated_tokens"]
    summary["cells"] = cells
    stages = {name: paths.metrics(name) for name in ("prepare", "warmup", "train")}
    seconds = {name: read_json(path)["seconds"] for name, path in stages.items() if path.is_file()}
    for checkpoint in (BEFORE, AFTER):
        spent = sum(evaluated.score.seconds for evaluated in evaluations[checkpoint].values())
        seconds[f"evaluate {checkpoint}"] = round(spent, 2)
    summary["seconds"] = seconds
    return summary


def _cell(evaluations: Evaluations, compared: Compared, name: str) -> dict[str, Any]:
    before, after = (evaluations[checkpoint][name].score for checkpoint in (BEFORE, AFTER))
    change = compared.comparison
    return {
        "problem_set": after.protocol.problem_set,
        "context": after.context,
        "context_length": after.protocol.context_length,
        "before": before.accuracy,
        "standard_error_before": before.standard_error,
        "after": after.accuracy,
        "standard_error_after": after.standard_error,
        "difference": change.difference if change else None,
        "standard_error_difference": change.standard_error if change else None,
    }


def publish_report(params: Params, paths: Paths, title: str) -> dict[str, Any]:
    """Write metrics/summary.json and report/index.html; returns the summary."""
    check_report(params, paths)
    evaluations = read_evaluations(params, paths)
    summary = summarize(paths, evaluations)
    from spo_core.policy.tokenizer import load_tokenizer  # with transformers, which a table does without

    tokenizer = load_tokenizer(paths.checkpoint("final"))
    questions = asked(paths.training)
    trees = [(tree, credit, questions[tree.question_id]) for tree, credit in read_pairs(paths.training)]
    trees.sort(key=lambda item: -sum(item[1].trains(i) for i in range(len(item[0].nodes))))
    inputs = ReportInputs(
        title=title,
        summary=summary,
        evaluations=evaluations,
        iterations=read_rows(paths.training / "metrics.jsonl"),
        warmup=_read_losses(paths),
        params=params.model_dump(mode="json"),
        provenance=read_json(paths.training / "manifest.json")["provenance"],
        trees=trees[:1],
        view=f"http://{HOST}:{DEFAULT_PORT}{run_address(paths.run_name)}",
    )
    with atomic_directory(paths.report) as folder:
        write_report(inputs, folder, lambda ids: str(tokenizer.decode(list(ids))))
    write_json(paths.metrics("summary"), summary)
    return summary


def _read_losses(paths: Paths) -> list[dict[str, float]]:
    path = paths.plots("warmup")
    lines = path.read_text().splitlines()[1:] if path.is_file() else []
    return [{"iteration": int(step), "warmup/loss": float(loss)} for step, loss in (line.split(",") for line in lines)]


def print_summary(paths: Paths, console: Console | None = None) -> None:
    """Print accuracies before and after, seconds of each stage, the path of the page, and how to look at more."""
    console = console or Console(highlight=False)
    summary = read_json(paths.metrics("summary"))
    cells = summary["cells"].values()
    several = len({cell["problem_set"] for cell in cells}) > 1
    accuracy = Table()
    for column in (*(["problem set"] if several else []), "context"):
        accuracy.add_column(column)
    for column in ("tokens", "before", "after", "change"):
        accuracy.add_column(column, justify="right")
    for cell in cells:
        accuracy.add_row(
            *([cell["problem_set"]] if several else []),
            cell["context"],
            str(cell["context_length"]),
            _with_error(cell["before"], cell["standard_error_before"]),
            _with_error(cell["after"], cell["standard_error_after"]),
            _with_error(cell["difference"], cell["standard_error_difference"], sign="+"),
        )
    seconds = Table()
    for stage in summary["seconds"]:
        seconds.add_column(stage, justify="right")
    seconds.add_row(*(f"{value:.1f}" for value in summary["seconds"].values()))
    console.print("Accuracy on the test split, ± standard error over questions", accuracy)
    console.print("Seconds of work in each stage", seconds)
    console.print(f"Generated tokens in training: {summary['generated_tokens']:,}")
    console.print(f"Report: {_relative(paths.report / 'index.html')}")
    console.print(invitation(paths, run_address(paths.run_name), paths.run_name or "main"))


def _with_error(value: float | None, error: float | None, sign: str = "") -> str:
    if value is None:
        return "not comparable"
    return f"{value:{sign}.3f}" if error is None else f"{value:{sign}.3f} ± {error:.3f}"


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
