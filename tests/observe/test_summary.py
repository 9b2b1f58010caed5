"""The summary of a run and its table, from what the stages published."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from spo_core.config import load_params
from spo_core.errors import DataError
from spo_core.evaluate.lighteval.details import write_details
from spo_core.evaluate.models import folder_model
from spo_core.evaluate.suite import cells
from spo_core.observe.evaluations import compare_cells, headline_cell, read_evaluations
from spo_core.observe.summary import check_report, print_summary, summarize
from spo_core.paths import Paths
from spo_core.system.files import write_json, write_text
from tests.conftest import ROOT
from tests.evaluate.test_models import policy_at
from tests.observe.examples import cell, changed, completions


@pytest.fixture
def published(tmp_path):
    """Params, and paths where all stages have published what the summary reads."""
    params, paths = load_params(ROOT, "short-arithmetic"), Paths(tmp_path)
    write_json(paths.metrics("train"), {"generated_tokens": 1234, "seconds": 3.5})
    write_text(paths.training / "metrics.jsonl", "")
    for name, correct in (("warmup", 0.4), ("final", 0.7)):
        (policy_at(paths.checkpoint(name)) / "model.safetensors").write_text(name)
        publish_evaluation(params, paths, name, correct)
    return params, paths


def publish_evaluation(params, paths: Paths, name: str, correct: float) -> None:
    digest = folder_model(name, paths.checkpoint(name)).digest
    for number_of_cell, of in enumerate(cells(params)):
        place = {"context": of.context, "context_length": of.context_length, "problem_set": of.problem_set}
        score = cell(drawn := completions(number_of_cell, correct), name, **place).score
        path = paths.evaluation(name, of.name)
        write_text(path, replace(score, model_digest=digest).to_json())
        write_details(path.with_suffix(".parquet"), drawn)


def test_the_summary_has_every_cell_and_the_paired_change(published):
    params, paths = published
    evaluations = read_evaluations(params, paths)
    summary = json.loads(json.dumps(summarize(paths, evaluations), allow_nan=False))
    assert list(summary["cells"]) == [c.name for c in cells(params)]
    compared = compare_cells(evaluations)
    for name, row in summary["cells"].items():
        assert row["difference"] == compared[name].comparison.difference == pytest.approx(row["after"] - row["before"])
        assert row["standard_error_difference"] == compared[name].comparison.standard_error
    long = summary["cells"][headline_cell(evaluations["final"])]
    assert (summary["accuracy_before"], summary["accuracy_after"]) == (long["before"], long["after"])
    assert summary["standard_error_difference"] == long["standard_error_difference"]
    assert summary["seconds"]["evaluate final"] == round(20.625 * len(cells(params)), 2)
    assert summary["generated_tokens"] == 1234


def test_scores_measured_differently_have_no_difference(published):
    params, paths = published
    evaluations = read_evaluations(params, paths)
    evaluations["final"] = {name: changed(c, engine="vllm") for name, c in evaluations["final"].items()}
    summary = summarize(paths, evaluations)
    assert summary["difference"] is None and summary["standard_error_difference"] is None
    assert {row["difference"] for row in summary["cells"].values()} == {None}


def test_the_table_names_problem_sets_only_where_there_are_several(published):
    params, paths = published
    summary = summarize(paths, read_evaluations(params, paths))

    def printed() -> str:
        write_json(paths.metrics("summary"), summary)
        text = StringIO()
        print_summary(paths, Console(file=text, width=160, highlight=False))
        return text.getvalue()

    assert f"{summary['accuracy_after']:.3f} ± " in printed() and "problem set" not in printed()
    assert f"{summary['difference']:+.3f} ± {summary['standard_error_difference']:.3f}" in printed()
    last = summary["cells"][list(summary["cells"])[-1]]
    last |= {"problem_set": "gsm8k", "difference": None, "standard_error_difference": None}
    assert "problem set" in printed() and "gsm8k" in printed() and "not comparable" in printed()


def test_the_first_missing_file_is_named(published):
    params, paths = published
    check_report(params, paths)
    names = [c.name for c in cells(params)]
    for missing in (
        paths.evaluation("final", names[-1]),
        paths.evaluation("final", names[0]).with_suffix(".parquet"),
        paths.evaluation("warmup", names[1]),
        paths.metrics("train"),
    ):
        missing.unlink()
        with pytest.raises(DataError, match=f"^{re.escape(str(missing))}: missing"):
            check_report(params, paths)


def test_a_score_that_cannot_be_read_is_named(published):
    params, paths = published
    path = paths.evaluation("final", cells(params)[0].name)
    path.write_text("{}")
    with pytest.raises(DataError, match=re.escape(str(path))):
        read_evaluations(params, paths)


def test_the_best_policy_is_shown_where_it_is_what_was_evaluated(published):
    params, paths = published
    folder = paths.checkpoint("best")
    write_text(folder / "config.json", "{}")
    write_text(folder / "model.safetensors", "weights")
    publish_evaluation(params, paths, "best", 0.6)
    assert list(read_evaluations(params, paths)) == ["warmup", "final", "best"]
    write_text(folder / "model.safetensors", "of a later training")
    assert list(read_evaluations(params, paths)) == ["warmup", "final"]


@pytest.mark.parametrize("change", ["evaluate.samples=5", "evaluate.contexts.long=81", "evaluate.temperature=0.5"])
def test_scores_of_another_policy_or_suite_are_not_shown(published, change):
    params, paths = published
    with pytest.raises(DataError, match=r"metrics/evaluate/warmup/.*evaluate again"):
        read_evaluations(load_params(ROOT, "short-arithmetic", (change,)), paths)
    write_text(paths.checkpoint("final") / "model.safetensors", "of a later training")
    with pytest.raises(DataError, match=r"metrics/evaluate/final/.*it is of policy .*evaluate again"):
        read_evaluations(params, paths)
