"""The summary of a run, its table, and the page made from what the stages published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from spo_core.config import Params
from spo_core.credit import read_credits
from spo_core.errors import DataError
from spo_core.files import atomic_directory, read_json, write_json
from spo_core.observe.report import ReportInputs, write_report
from spo_core.paths import Paths
from spo_core.runs import read_rows
from spo_core.tree import read_trees

CHECKPOINTS = ("warmup", "final")


def check_report(paths: Paths) -> None:
    """Raise DataError where a stage has not published what the summary needs."""
    needed = [paths.metrics("train"), paths.training / "metrics.jsonl", *(paths.evaluation(c) for c in CHECKPOINTS)]
    for path in needed:
        if not path.is_file():
            raise DataError(f"{path}: missing; train and evaluate first (python -m flows.experiment, or dvc repro)")


def summarize(paths: Paths) -> dict[str, Any]:
    """Accuracy before and after in the longest context, each cell, seconds a stage, generated tokens."""
    check_report(paths)
    evaluations = {c: read_json(paths.evaluation(c)) for c in CHECKPOINTS}
    longest = max(evaluations["final"]["cells"].items(), key=lambda item: item[1]["context_length"])[0]
    summary: dict[str, Any] = {}
    for checkpoint, label in zip(CHECKPOINTS, ("before", "after"), strict=True):
        cell = evaluations[checkpoint]["cells"][longest]
        summary[f"accuracy_{label}"] = cell["accuracy"]
        summary[f"standard_error_{label}"] = cell["standard_error"]
    train = read_json(paths.metrics("train"))
    summary["generated_tokens"] = train["generated_tokens"]
    summary["contexts"] = {
        name: {
            "context_length": cell["context_length"],
            "before": evaluations["warmup"]["cells"][name]["accuracy"],
            "standard_error_before": evaluations["warmup"]["cells"][name]["standard_error"],
            "after": cell["accuracy"],
            "standard_error_after": cell["standard_error"],
        }
        for name, cell in sorted(evaluations["final"]["cells"].items(), key=lambda item: item[1]["context_length"])
    }
    stages = {name: paths.metrics(name) for name in ("prepare", "warmup", "train")}
    seconds = {name: read_json(path)["seconds"] for name, path in stages.items() if path.is_file()}
    seconds |= {f"evaluate {c}": round(e["seconds"], 2) for c, e in evaluations.items()}
    summary["seconds"] = seconds
    return summary


def publish_report(params: Params, paths: Paths, title: str) -> dict[str, Any]:
    """Write metrics/summary.json and report/index.html; the summary."""
    summary = summarize(paths)
    tokenizer = AutoTokenizer.from_pretrained(paths.checkpoint("final"))
    sampled = read_trees(paths.training / "trees.parquet")
    credits = read_credits(paths.training / "credits.parquet", sampled)
    questions = {q["question_id"]: q["question"] for q in read_json(paths.training / "questions.json")}
    trees = [(t, c, questions[t.question_id]) for t, c in zip(sampled, credits, strict=True)]
    trees.sort(key=lambda item: -sum(item[1].trains(i) for i in range(len(item[0].nodes))))
    inputs = ReportInputs(
        title=title,
        summary=summary,
        evaluations={c: read_json(paths.evaluation(c)) for c in CHECKPOINTS},
        iterations=read_rows(paths.training / "metrics.jsonl"),
        warmup=_read_losses(paths),
        params=params.model_dump(mode="json"),
        provenance=read_json(paths.training / "manifest.json")["provenance"],
        trees=trees[:1],
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
    """The table a newcomer sees at the end, and where the page lies."""
    console = console or Console(highlight=False)
    summary = read_json(paths.metrics("summary"))
    accuracy = Table()
    for column in ("context", "tokens", "before", "after"):
        accuracy.add_column(column, justify="left" if column == "context" else "right")
    for name, cell in summary["contexts"].items():
        accuracy.add_row(
            name,
            str(cell["context_length"]),
            _with_error(cell["before"], cell["standard_error_before"]),
            _with_error(cell["after"], cell["standard_error_after"]),
        )
    seconds = Table()
    for stage in summary["seconds"]:
        seconds.add_column(stage, justify="right")
    seconds.add_row(*(f"{value:.1f}" for value in summary["seconds"].values()))
    console.print("Accuracy on the test split, ± standard error over questions", accuracy)
    console.print("Seconds of work in each stage", seconds)
    console.print(f"Generated tokens in training: {summary['generated_tokens']:,}")
    console.print(f"Report: {_relative(paths.report / 'index.html')}")


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
