"""When a cell is measured anew, and that a score is never another policy's."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from spo_core.config import load_params
from spo_core.evaluate import cell as run_module
from spo_core.evaluate.cell import evaluate_cell, publish_cell
from spo_core.evaluate.models import folder_model
from spo_core.evaluate.suite import cells
from spo_core.paths import Paths
from tests.conftest import ROOT
from tests.evaluate.test_models import policy_at
from tests.observe.examples import cell as example
from tests.observe.examples import completions


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "constraints").mkdir()
    (tmp_path / "constraints" / "evaluate.txt").write_text("lighteval==0.13.0")
    data = tmp_path / "data" / "arithmetic"
    data.mkdir(parents=True)
    row = {"question_id": "q0", "question": "1+1=?", "answer": "2", "solution": ""}
    (data / "test.jsonl").write_text(json.dumps(row) + "\n")
    return Paths(tmp_path)


@pytest.fixture
def measured(monkeypatch):
    """What was measured, in order; a stand-in for lighteval that knows the policy's digest only."""
    asked: list[tuple[str, str]] = []

    def measure(checkpoint, cell, questions, problem, params, verify, *, model, model_digest, work_dir, **_):
        asked.append((model_digest, cell.name))
        (work_dir / "details.parquet").write_text(model_digest)
        return replace(example(completions(1, 0.5)).score, model=model, model_digest=model_digest, cell=cell.name)

    monkeypatch.setattr(run_module, "measure_cell", measure)
    return asked


def test_measured_once_under_any_name(paths, measured, tmp_path):
    params = load_params(ROOT)
    cell = cells(params)[0]
    first = evaluate_cell(params, paths, folder_model("a", policy_at(tmp_path / "a")), cell)
    again = evaluate_cell(params, paths, folder_model("b", policy_at(tmp_path / "b")), cell)
    assert len(measured) == 1 and (first.score.model, again.score.model) == ("a", "b")
    assert replace(first.score, model="b") == again.score


@pytest.mark.parametrize(
    "change",
    [
        "evaluate.temperature=0.5",
        "evaluate.samples=3",
        "evaluate.seed=1",
        "evaluate.batch_size=8",
        "verify.grader=minerva",
        "run.threads=3",
        "evaluate.engine={type: vllm}",
    ],
)
def test_whatever_decides_the_score_measures_anew(paths, measured, tmp_path, change):
    model = folder_model("a", policy_at(tmp_path / "a"))
    for params in (load_params(ROOT), load_params(ROOT, None, (change,))):
        evaluate_cell(params, paths, model, cells(params)[0])
    assert len(measured) == 2


def test_each_context_policy_and_question_is_measured_on_its_own(paths, measured, tmp_path):
    params = load_params(ROOT)
    folder = policy_at(tmp_path / "a")
    for cell in cells(params):
        evaluate_cell(params, paths, folder_model("a", folder), cell)
    assert len(measured) == 3
    (folder / "model.safetensors").write_text("other weights in the same place")
    scored = evaluate_cell(params, paths, folder_model("a", folder), cells(params)[0])
    assert len(measured) == 4 and scored.details.read_text() == scored.score.model_digest == measured[-1][0]
    rows = paths.data("arithmetic") / "test.jsonl"
    rows.write_text(rows.read_text().replace("1+1", "2+0"))
    evaluate_cell(params, paths, folder_model("a", folder), cells(params)[0])
    assert len(measured) == 5


@pytest.mark.parametrize("free", ["evaluate.questions=1", "verify.workers=1", "run.seed=7", "run.gpu_limit=null"])
def test_what_decides_nothing_measures_nothing(paths, measured, tmp_path, free):
    model = folder_model("a", policy_at(tmp_path / "a"))
    for params in (load_params(ROOT), load_params(ROOT, None, (free,))):
        evaluate_cell(params, paths, model, cells(params)[0])
    assert len(measured) == 1


def test_published_score_and_completions_stand_together(paths, measured, tmp_path):
    params = load_params(ROOT)
    evaluated = evaluate_cell(params, paths, folder_model("a", policy_at(tmp_path / "a")), cells(params)[0])
    target = paths.evaluation("final", "arithmetic-short")
    publish_cell(evaluated, target)
    assert json.loads(target.read_text()) == json.loads(evaluated.score.to_json())
    assert target.with_suffix(".parquet").read_text() == evaluated.details.read_text()
