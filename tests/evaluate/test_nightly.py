"""The newest checkpoint, the memory of the reports, and what counts as a fall; nothing is evaluated here."""

from __future__ import annotations

import json
import os
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from spo_core.config import Params, load_params
from spo_core.errors import RunError
from spo_core.evaluate.cell import Evaluated
from spo_core.evaluate.lighteval.details import Sample, write_details
from spo_core.evaluate.models import Model
from spo_core.evaluate.nightly.newest import Found, newest_checkpoint, newest_model
from spo_core.evaluate.nightly.nightly_report import (
    NightlyReport,
    already_evaluated,
    asked,
    fall,
    free_name,
    make_report,
    metrics,
    reports,
    table,
    write_report,
)
from spo_core.evaluate.result import CellScore, Protocol, Tokens
from spo_core.paths import Paths
from spo_core.problems import problem_set
from spo_core.runs.directory import open_run
from spo_core.verify import Outcome
from tests.conftest import ROOT

CELL = "arithmetic-long"
START = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)


@pytest.fixture
def paths(tmp_path) -> Paths:
    return Paths(tmp_path)


def trained(paths: Paths, params: Params, name: str, *numbers: int, prompts: dict | None = None) -> Path:
    """A training run with checkpoints, each a second younger than the one before, whoever has it."""
    problem = problem_set(params.data)
    identity = {
        "problem_set": params.data.problem_set,
        "prompts": prompts or problem.template.described() | {"rule": problem.rule},
    }

    def write(folder: Path) -> None:
        (folder / "policy").mkdir()
        for part in ("config.json", "model.safetensors"):
            (folder / "policy" / part).write_text(f"{name} {number} {part}")
        (folder / "state.json").write_text("{}")

    with open_run(paths.work, "train", identity, paths.root, name) as run:
        for number in numbers:
            checkpoint = run.save_checkpoint(number, write, keep=9)
            trained.clock += 1
            os.utime(checkpoint / "COMPLETE", (trained.clock, trained.clock))
        return run.path


trained.clock = 1_000_000


def test_the_newest_of_all_runs_is_found(paths, params):
    a = trained(paths, params, "a", 10, 20)
    assert newest_checkpoint(paths.work, params) == Found(a, 20)
    b = trained(paths, params, "b", 5)
    assert newest_checkpoint(paths.work, params) == Found(b, 5)
    trained(paths, params, "a", 30)
    assert newest_checkpoint(paths.work, params) == Found(a, 30)


def test_nothing_is_found_where_nothing_is(paths, params):
    assert newest_checkpoint(paths.work, params) is None
    trained(paths, params, "a")
    assert newest_checkpoint(paths.work, params) is None


@pytest.mark.parametrize("damage", ["no COMPLETE", "cut off"])
def test_incomplete_checkpoints_are_passed_over(paths, params, damage):
    a = trained(paths, params, "a", 10, 20)
    newest = a / "checkpoints" / "000020"
    if damage == "no COMPLETE":
        (newest / "COMPLETE").unlink()
    else:
        (newest / "policy" / "model.safetensors").write_text("")
    assert newest_checkpoint(paths.work, params) == Found(a, 10)


def test_runs_with_other_questions_or_prompts_are_passed_over(paths, params):
    a = trained(paths, params, "a", 10)
    described = problem_set(params.data).template.described()
    trained(paths, params, "b", 20, prompts=described | {"text": "Say {question}", "rule": "math"})
    gsm8k = load_params(ROOT, overrides=("data.problem_set=gsm8k",))
    trained(paths, gsm8k, "c", 30)
    (trained(paths, params, "d", 40) / "manifest.json").write_text("{")
    shutil.copytree(a, paths.work / "replay-e")
    assert newest_checkpoint(paths.work, params) == Found(a, 10)


def test_the_policy_outlives_its_checkpoint_while_it_is_held_and_then_goes(paths, params):
    a = trained(paths, params, "a", 10)
    with newest_model(paths, params) as newest:
        found, model = newest
        shutil.rmtree(found.folder)
        assert (model.folder / "model.safetensors").read_text() == "a 10 model.safetensors"
        assert model.name == "train-a/000010" and not model.folder.is_relative_to(a)
    assert not model.folder.exists()


def test_a_checkpoint_deleted_while_it_is_taken_gives_way_to_the_next(paths, params, monkeypatch):
    a = trained(paths, params, "a", 10)
    real = shutil.copytree

    def deleted_meanwhile(source, target, **options):
        if "000010" in str(source):
            (Path(source) / "model.safetensors").unlink()  # copied without it, as copytree finds it gone
            trained(paths, params, "a", 20)
        return real(source, target, **options)

    monkeypatch.setattr(shutil, "copytree", deleted_meanwhile)
    with newest_model(paths, params) as (found, model):
        assert found == Found(a, 20)
        assert (model.folder / "model.safetensors").read_text() == "a 20 model.safetensors"


def test_two_nights_at_once_are_refused(paths, params):
    with newest_model(paths, params), pytest.raises(RunError, match="in use"), newest_model(paths, params):
        pass


def graded(folder: Path, *correct: float, samples: int = 4, grader: str = "exact") -> Evaluated:
    """A cell in which question i was answered correctly that often, of ``samples`` times."""
    rows = [
        Sample(f"q{i}", n, "#### 1", "1", "1", Outcome.CORRECT if n < share * samples else Outcome.WRONG, "correct", 9)
        for i, share in enumerate(correct)
        for n in range(samples)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    details = folder / "details.parquet"
    write_details(details, rows)
    accuracy = sum(correct) / len(correct)
    score = CellScore(
        model="m",
        model_digest="0",
        suite="embedded",
        cell=CELL,
        context="long",
        accuracy=accuracy,
        standard_error=0.1,
        interval=(0.0, 1.0),
        majority=accuracy,
        truncated=0.0,
        no_answer=0.0,
        unparsable=0.0,
        timeout=0.0,
        tokens=Tokens(9.0, 9.0, 9.0, 9, 9.0),
        cross_check=None,
        protocol=Protocol(
            problem_set="arithmetic",
            context_length=80,
            questions=len(correct),
            samples=samples,
            temperature=1.0,
            top_p=1.0,
            prompt_digest="prompts",
            answer_digest="answers",
            grader=grader,
            engine="transformers",
            dtype="float32",
            versions={},
        ),
        lighteval_prompt_hash="h",
        seed=0,
        seconds=1.0,
        generated_tokens=9,
    )
    return Evaluated(score, details)


def night(paths: Paths, params: Params, number: int, evaluated: Evaluated, *, run: str = "train-a") -> NightlyReport:
    """The report of the checkpoint with that number, written."""
    found, model = Found(paths.work / run, number), Model("m", paths.work, "m", f"digest {run} {number}")
    night.clock += timedelta(minutes=10)
    cells = {CELL: evaluated}
    report = make_report(
        paths, params, found, model, cells, date="2026-11-23", started=night.clock, finished=night.clock
    )
    write_report(paths.nightly(free_name(paths, "2026-11-23")), report, cells)
    return report


night.clock = START
BEFORE = (1.0, 1.0, 0.75, 1.0, 0.5, 1.0, 0.75, 1.0)


def test_reports_are_read_as_written_and_none_is_overwritten(paths, params, tmp_path):
    first = night(paths, params, 10, graded(tmp_path / "w", *BEFORE))
    text = paths.nightly("2026-11-23").read_bytes()
    others = [night(paths, params, number, graded(tmp_path / "w", *BEFORE)) for number in (20, 30)]
    folder = paths.nightly("x").parent
    assert list(reports(folder)) == ["2026-11-23", "2026-11-23-2", "2026-11-23-3"]
    assert list(reports(folder).values()) == [first, *others]
    assert paths.nightly("2026-11-23").read_bytes() == text
    assert json.loads(text)["cells"][CELL]["score"]["accuracy"] == pytest.approx(sum(BEFORE) / len(BEFORE))
    assert (folder / "2026-11-23-2" / f"{CELL}.parquet").is_file()


def test_a_policy_is_evaluated_once_for_each_way_of_asking(paths, params, tmp_path):
    folder = paths.nightly("x").parent
    assert already_evaluated(folder, "digest train-a 10", params) is None
    night(paths, params, 10, graded(tmp_path / "w", *BEFORE))
    assert already_evaluated(folder, "digest train-a 10", params) == "2026-11-23"
    assert already_evaluated(folder, "digest train-a 20", params) is None
    others = [load_params(ROOT, overrides=(f"evaluate.{c}",)) for c in ("samples=8", "seed=1", "contexts={long: 90}")]
    for other in (*others, load_params(ROOT, suite="long-cot")):
        assert already_evaluated(folder, "digest train-a 10", other) is None
    for irrelevant in ("nightly.wait_seconds=1", "batch_size=3"):
        same = load_params(ROOT, overrides=(f"evaluate.{irrelevant}",))
        assert already_evaluated(folder, "digest train-a 10", same) == "2026-11-23"


@pytest.mark.parametrize(
    ("after", "fell"),
    [
        (tuple(share - 0.5 for share in BEFORE), True),
        (BEFORE, False),
        (tuple(min(1.0, share + 0.25) for share in BEFORE), False),
        ((0.75, *BEFORE[1:]), False),  # one question of eight, a quarter: one standard error
    ],
)
def test_a_fall_is_more_than_its_standard_errors(paths, params, tmp_path, after, fell):
    night(paths, params, 10, graded(tmp_path / "w", *BEFORE))
    report = night(paths, params, 20, graded(tmp_path / "v", *after))
    cell = report.cells[CELL]
    differences = [b - a for a, b in zip(BEFORE, after, strict=True)]
    mean = sum(differences) / 8
    error = (sum((d - mean) ** 2 for d in differences) / 7 / 8) ** 0.5
    assert (cell.difference, cell.standard_error) == (pytest.approx(mean), pytest.approx(error))
    assert cell.fell is fell is (mean < -params.evaluate.nightly.standard_errors * error)
    assert report.fell == ([CELL] if fell else []) and report.compared_with == "2026-11-23"


def test_the_completions_of_a_report_survive_the_working_directories(paths, params, tmp_path):
    night(paths, params, 10, graded(tmp_path / "w", *BEFORE))
    shutil.rmtree(tmp_path / "w")
    assert night(paths, params, 20, graded(tmp_path / "v", *BEFORE)).cells[CELL].difference == 0


def test_only_the_last_report_of_the_same_run_is_compared_with(paths, params, tmp_path):
    night(paths, params, 10, graded(tmp_path / "a", *BEFORE))
    other = night(paths, params, 10, graded(tmp_path / "b", *([0.25] * 8)), run="train-b")
    assert other.compared_with is None and "first report" in other.cells[CELL].not_compared
    report = night(paths, params, 20, graded(tmp_path / "c", *BEFORE))
    assert report.compared_with == "2026-11-23" and report.cells[CELL].difference == 0


@pytest.mark.parametrize("what", ["other grader", "other questions", "lost completions", "one question"])
def test_what_does_not_compare_has_its_reason_and_is_no_fall(paths, params, tmp_path, what):
    first = graded(tmp_path / "w", *([1.0] if what == "one question" else BEFORE))
    night(paths, params, 10, first)
    if what == "lost completions":
        (paths.nightly("2026-11-23").with_suffix("") / f"{CELL}.parquet").unlink()
    now = graded(
        tmp_path / "v",
        *([0.0] * (1 if what == "one question" else 7 if what == "other questions" else 8)),
        grader="minerva" if what == "other grader" else "exact",
    )
    cell = night(paths, params, 20, now).cells[CELL]
    assert cell.not_compared and not cell.fell and cell.standard_error is None
    if what == "other grader":
        assert "grader" in cell.not_compared


def test_what_is_told_says_what_the_report_says(paths, params, tmp_path):
    night(paths, params, 10, graded(tmp_path / "w", *BEFORE))
    report = night(paths, params, 20, graded(tmp_path / "v", *(share - 0.5 for share in BEFORE)))
    row = metrics(report)
    assert row["nightly/iteration"] == 20 and row[f"nightly/{CELL}/difference"] == -0.5
    assert row[f"nightly/{CELL}/accuracy"] == report.cells[CELL].score.accuracy
    told = fall(report, Path("reports/nightly/x.json"))
    assert told["cells"][CELL]["difference"] == -0.5 and told["run"] == "train-a"
    assert CELL in told["message"] and "-0.500" in told["message"]
    json.dumps(told, allow_nan=False)
    (shown,) = table(report)
    assert shown["difference"] == "-0.500" and shown[""] == "fell"


def test_a_file_that_is_no_report_is_passed_over_and_named(paths, params, caplog):
    target = paths.nightly("2026-11-23")
    target.parent.mkdir(parents=True)
    target.write_text("{}")
    assert already_evaluated(target.parent, "x", params) is None
    assert re.search(r"2026-11-23\.json: no nightly report of this version", caplog.text)


def test_what_is_asked_is_plain_json(params):
    assert json.loads(json.dumps(asked(params))) == asked(params)
    assert asked(params) != asked(params.model_copy(update={"verify": replace_grader(params)}))


def replace_grader(params: Params):
    return params.verify.model_copy(update={"grader": "minerva"})


@pytest.fixture
def scheduled(monkeypatch):
    """Makes the present flow run one of a deployment with two schedules, made by the second."""
    from tasks import nightly as when

    here = [SimpleNamespace(id=name, schedule=SimpleNamespace(timezone=name)) for name in ("Etc/GMT+12", "Etc/GMT-14")]

    def make(hours: float, *, auto: bool = True, run_count: int = 1, maker: str = "Etc/GMT-14"):
        run = SimpleNamespace(
            deployment_id="d",
            created_by=SimpleNamespace(id=maker),
            auto_scheduled=auto,
            run_count=run_count,
            expected_start_time=datetime.now(UTC) - timedelta(hours=hours),
        )
        client = MagicMock()
        client.__enter__.return_value.read_deployment.return_value.schedules = here
        monkeypatch.setattr(when, "FlowRunContext", SimpleNamespace(get=lambda: SimpleNamespace(flow_run=run)))
        monkeypatch.setattr(when, "get_client", lambda **_: client)
        return when.this_night()

    return make


def test_a_night_has_the_date_of_the_timezone_of_its_schedule(scheduled):
    now = datetime.now(UTC)
    assert scheduled(0).date == (now + timedelta(hours=14)).date().isoformat()
    assert scheduled(0, maker="Etc/GMT+12").date == (now - timedelta(hours=12)).date().isoformat()


def test_only_what_a_schedule_started_is_late(scheduled):
    assert scheduled(7).hours_late == pytest.approx(7, abs=0.01)
    assert scheduled(7, auto=False).hours_late == scheduled(7, run_count=2).hours_late == 0
