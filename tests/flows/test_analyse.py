"""The analysis as a command on the embedded problem: whole, a second time, interrupted, and refused in a line."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.numpy import load_file, save_file

from spo_core.errors import DataError, SPOError
from spo_core.system.files import file_digest
from tasks.analysis import read_spec, refer_model
from tests.flows.conftest import run_module
from tests.system.test_processes import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
GRID = {"3-3": {"set": ["rollout.branch_factors=[3, 3]"]}}
AMOUNT = ("--tokens", "2500", "--states", "4", "--rollouts", "6")
COMMAND = ("default", "grpo", "--grid", "grid.yaml", *AMOUNT)


@pytest.fixture(scope="module")
def project(prepared) -> Path:
    (prepared / "grid.yaml").write_text(yaml.safe_dump(GRID))
    return prepared


def files(project: Path) -> dict[str, str]:
    """All that was measured, by name; none of it may change later."""
    (folder,) = project.glob("work/analysis-*")
    kept = ("gradients.safetensors", "trees.parquet")
    return {
        str(p.relative_to(folder)): file_digest(p)
        for p in sorted(folder.rglob("*"))
        if p.name in kept or p.parent.name == "states"
    }


def report(project: Path, name: str) -> dict:
    return json.loads((project / "reports" / "analysis" / name / "analysis.json").read_text())


def without_seconds(found: dict) -> dict:
    rows = [
        row
        | {"seconds_gain": None}
        | {"efficiency": {k: v for k, v in row["efficiency"].items() if k not in ("per_second", "seconds")}}
        for row in found["candidates"]
    ]
    return {"identity": found["identity"], "candidates": rows}


@pytest.fixture(scope="module")
def whole(project, environment) -> dict:
    """What an analysis that ran through says."""
    result = run_module(project, environment, "flows.analyse", *COMMAND, "--name", "whole")
    assert result.returncode == 0, result.stdout + result.stderr
    found = report(project, "whole")
    assert all(line.split(" ")[0] in result.stdout for line in found["recommendations"])
    return found


def test_an_analysis_measures_every_candidate_and_the_reference(whole, project):
    rows = {row["name"]: row for row in whole["candidates"]}
    assert list(rows) == ["default", "grpo", "3-3", "reference"] and whole["name"] == "whole"
    for name, row in rows.items():
        own = row["efficiency"]
        assert own["tokens"] * 2 * own["questions"] >= 2500 and own["seconds"] > 0 and own["questions"] >= 3
        assert (row["values"] is not None) == (name in ("default", "3-3"))
        assert row["found"]["responses"] >= row["found"]["blamed"], row["found"]
        assert row["cosine"] is None or name != "reference"
    assert any(row["found"]["blamed"] for row in rows.values())
    assert rows["default"]["values"]["states"] == 4 and rows["3-3"]["described"].startswith("3-3; fixed_tokens")
    page = (project / "reports" / "analysis" / "whole" / "index.html").read_text()
    assert all(name in page for name in rows)


@pytest.mark.exhaustive
def test_a_second_start_measures_nothing_again_and_says_the_same(whole, project, environment):
    before = files(project)
    stamps = {p: p.stat().st_mtime_ns for p in project.glob("work/analysis-*/*/*/*")}
    result = run_module(project, environment, "flows.analyse", *COMMAND, "--name", "again")
    assert result.returncode == 0, result.stdout + result.stderr
    assert files(project) == before and {p: p.stat().st_mtime_ns for p in stamps} == stamps
    again = report(project, "again")
    assert {k: v for k, v in again.items() if k != "name"} == {k: v for k, v in whole.items() if k != "name"}
    pages = [(project / "reports" / "analysis" / name / "index.html").read_text() for name in ("whole", "again")]
    assert pages[0].replace("whole", "again") == pages[1].replace("whole", "again")


def test_interrupted_it_goes_on_to_the_same_numbers(whole, project, environment, tmp_path):
    """Ctrl-C in the middle, in a working directory of its own."""
    elsewhere = environment | {"SPO_WORK_DIR": str(tmp_path / "work")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "flows.analyse", *COMMAND, "--name", "interrupted"]
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(
            command,
            cwd=project,
            env=elsewhere | {"PATH": path},
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

        def under_way() -> bool:
            assert process.poll() is None, (tmp_path / "log").read_text()
            return any((tmp_path / "work").glob("analysis-*/grpo-*/00001"))

        until(under_way, seconds=300)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=120) != 0
        log.seek(0)
        assert "interrupted; the same command goes on from what is finished" in log.read()
    assert not (project / "reports" / "analysis" / "interrupted").exists()
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / "work").glob("analysis-*/*/*/*.safetensors")}
    assert done
    result = run_module(project, elsewhere, "flows.analyse", *COMMAND, "--name", "interrupted")
    assert result.returncode == 0, result.stdout + result.stderr
    assert {p: p.stat().st_mtime_ns for p in done} == done
    assert without_seconds(report(project, "interrupted")) == without_seconds(whole)


@pytest.mark.exhaustive
def test_several_policies_are_measured_one_after_the_other(whole, project, environment):
    """A page stands above two analyses, of which the first was measured before."""
    warmup = project / "checkpoints" / "warmup"
    shutil.copytree(warmup, project / "other")
    weights = load_file(warmup / "model.safetensors")
    save_file({k: v * 0.9 for k, v in weights.items()}, project / "other" / "model.safetensors", {"format": "pt"})
    options = ("--model", "warmup", "--model", "other", "--start", "warmup", "--name", "both")
    result = run_module(project, environment, "flows.analyse", *COMMAND, *options)
    assert result.returncode == 0, result.stdout + result.stderr
    both = report(project, "both")
    first, second = both["analyses"]
    assert first["candidates"] == whole["candidates"] and second["candidates"] != whole["candidates"]
    assert first["drift"]["distance"] == 0 < second["drift"]["distance"]
    folders = [project / "reports" / "analysis" / "both" / name for name in both["models"]]
    assert all((folder / "index.html").is_file() for folder in folders)
    page = (project / "reports" / "analysis" / "both" / "index.html").read_text()
    assert all(f'href="{name}/index.html"' in page for name in both["models"])


def test_a_preset_without_a_run_uses_the_first_policy_and_data_of_the_main_run(project, monkeypatch):
    monkeypatch.chdir(project)
    run, _ = read_spec(project, ("grpo",), None, (), None)
    assert run.run_name == "grpo"
    assert Path(refer_model(run, "warmup").location) == project / "checkpoints" / "warmup"
    with pytest.raises(DataError, match=r"outputs/runs/grpo/checkpoints/final: no such checkpoint"):
        refer_model(run, "final")


def listed(project: Path) -> set[str]:
    return {str(p) for p in project.rglob("*") if "__pycache__" not in p.parts}


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"presets": ("default", "default")}, "a name is given twice"),
        ({"grid": "nowhere.yaml"}, "nowhere.yaml: no such file"),
        ({"presets": ("grpo",), "grid": "bad.yaml"}, "bad.yaml: a.presets: Extra inputs are not permitted"),
        ({"presets": ("default", "gsm8k-smoke")}, "gsm8k-smoke and default differ in data."),
        ({"overrides": ("data.seed=7",)}, "data.seed is 7, and the data of the main run were prepared with 0"),
        ({"presets": ("gsm8k-smoke",)}, "no such dataset; prepare it with python -m flows.prepare"),
        ({"model": "final"}, "checkpoints/final: no such checkpoint"),
        ({"model": "newest"}, "'newest': neither one of warmup, final, best, nor a folder"),
        ({"name": "../elsewhere"}, "--name '../elsewhere' names a folder"),
    ],
)
def test_refused_before_anything_starts(project, monkeypatch, told, says):
    (project / "bad.yaml").write_text("a: {presets: grpo}")
    monkeypatch.chdir(project)
    told = {"presets": ("default",), "grid": None, "overrides": (), "name": None, "model": "warmup"} | told
    model = told.pop("model")
    with pytest.raises(SPOError, match=re.escape(says)):
        refer_model(read_spec(project, **told)[0], model)


@pytest.mark.parametrize(
    "arguments",
    [
        ["gpro"],
        pytest.param(["--set", "rollout.context_length=300"], marks=pytest.mark.exhaustive),
        pytest.param(["--model", "best", "--model", "best"], marks=pytest.mark.exhaustive),
    ],
)
def test_refused_in_one_line_and_nothing_written(project, environment, arguments):
    before = listed(project)
    result = run_module(project, environment, "flows.analyse", *arguments)
    message = result.stderr.strip().splitlines()[-1] if result.stderr.strip() else ""
    assert result.returncode == 2 and message.startswith("error: "), result.stderr
    assert arguments[-1].split("=")[-1] in message and listed(project) == before
