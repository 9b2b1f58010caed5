"""The pipeline end to end, as a newcomer runs it: real server, real lighteval, real DVC, small params."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spo_core.system.files import folder_digest
from tests.conftest import SHARED_DATA
from tests.flows.conftest import change, needs_evaluation, run_module
from tests.flows.test_deploy import ask
from tests.system.test_processes import until

pytestmark = [pytest.mark.slow, needs_evaluation]


CONTEXTS = {"long": 80}


@pytest.fixture(scope="module")
def demo(new_project, environment):
    """The small demo, run once; the project's folder and what was printed."""
    project = new_project()
    change(project, {"evaluate": {"contexts": CONTEXTS}})
    result = run_module(project, environment, "flows.demo")
    assert result.returncode == 0, result.stdout + result.stderr
    return project, result.stdout


def rows_without_timing(project: Path) -> list[dict]:
    (path,) = project.glob("work/train-*/metrics.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("timing/")} for row in rows]


def scores(output: Path, checkpoint: str) -> dict[str, dict]:
    """Of every cell, without what depends on the machine."""
    files = sorted((output / "metrics" / "evaluate" / checkpoint).glob("*.json"))
    return {f.stem: {k: v for k, v in json.loads(f.read_text()).items() if k != "seconds"} for f in files}


def test_the_table_and_the_summary_say_the_same(demo):
    project, printed = demo
    summary = json.loads((project / "metrics" / "summary.json").read_text())
    assert f"{summary['accuracy_after']:.3f}" in printed and "report/index.html" in printed
    assert list(summary["cells"]) == ["arithmetic-long"]
    assert {"prepare", "warmup", "train", "evaluate warmup", "evaluate final"} == set(summary["seconds"])
    rows = rows_without_timing(project)
    assert (
        summary["generated_tokens"] == rows[-1]["generated_tokens"] == sum(r["rollout/generated_tokens"] for r in rows)
    )
    assert 0 <= rows[-1]["eval/validation_accuracy"] <= 1
    assert (project / "report" / "index.html").stat().st_size > 10_000


def test_a_second_run_redoes_nothing(demo, environment):
    project, _ = demo
    before = {p: p.stat().st_mtime_ns for p in project.rglob("*") if p.is_file() and ".dvc" not in p.parts}
    result = run_module(project, environment, "flows.demo")
    assert result.returncode == 0 and "Nothing changed" in result.stdout
    after = {p: p.stat().st_mtime_ns for p in project.rglob("*") if p.is_file() and ".dvc" not in p.parts}
    assert before == after


def test_dvc_has_something_true_to_show(demo, environment):
    project, _ = demo
    shown = json.loads(run_module(project, environment, "dvc", "metrics", "show", "--json").stdout)
    summary = shown[""]["data"]["metrics/summary.json"]["data"]
    assert summary == json.loads((project / "metrics" / "summary.json").read_text())
    learn = project / "params" / "learn.yaml"
    text = learn.read_text()
    learn.write_text(text.replace("epochs: 1", "epochs: 2"))
    try:
        changed = json.loads(run_module(project, environment, "dvc", "params", "diff", "--json").stdout)
        stale = run_module(project, environment, "dvc", "status").stdout
    finally:
        learn.write_text(text)
    del changed["params/evaluate.yaml"]  # the context of this file's demo
    assert changed == {"params/learn.yaml": {"learn.epochs": {"old": 1, "new": 2, "diff": 1}}}
    assert "train:" in stale and "warmup:" not in stale
    plots = run_module(project, environment, "dvc", "plots", "show", "--json").stdout
    assert "plots/train.csv" in plots and "plots/warmup.csv" in plots


def test_another_context_length_runs_one_cell_of_each_checkpoint(demo, environment):
    project, _ = demo
    params = project / "params" / "evaluate.yaml"
    text = params.read_text()
    change(project, {"evaluate": {"contexts": CONTEXTS | {"short": 60}}})
    try:
        stale = json.loads(run_module(project, environment, "dvc", "status", "--json").stdout)
    finally:
        params.write_text(text)
    assert {s for s in stale if s.startswith("evaluate")} == {
        "evaluate@warmup-arithmetic-short",
        "evaluate@final-arithmetic-short",
    }
    assert set(stale) - {"report"} == {s for s in stale if s.startswith("evaluate")}


def test_any_policy_in_any_suite_and_two_of_them_compared(demo, environment):
    """A folder, a git revision that DVC has, and the run's best; what was measured before is not measured again."""
    project, _ = demo
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["add", "-A"], [*identity, "commit", "-qm", "trained"]):
        subprocess.run(["git", *command], cwd=project, check=True)
    before = sorted(project.glob("work/evaluate-*"))
    compared = run_module(
        project,
        environment,
        "flows.evaluate",
        "--cell",
        "arithmetic-long",
        "--compare",
        "warmup",
        "HEAD:checkpoints/final",
    )
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert "arithmetic-long" in compared.stdout and sorted(project.glob("work/evaluate-*")) == before
    again = run_module(
        project, environment, "flows.evaluate", "--model", "HEAD:checkpoints/final", "--cell", "arithmetic-long"
    )
    assert again.returncode == 0, again.stdout + again.stderr
    (foreign,) = project.glob("outputs/evaluations/HEAD-checkpoints-final-*/embedded/arithmetic-long.json")
    theirs, ours = json.loads(foreign.read_text()), scores(project, "final")["arithmetic-long"]
    assert {k: v for k, v in theirs.items() if k not in ("seconds", "model")} == {
        k: v for k, v in ours.items() if k != "model"
    }
    lock = (project / "dvc.lock").read_text()
    shorter = ["--set", "evaluate.samples=1", "--set", "evaluate.questions=4"]
    folder = run_module(project, environment, "flows.evaluate", "--model", "checkpoints/best", *shorter)
    assert folder.returncode == 0, folder.stdout + folder.stderr
    assert len(list(project.glob("outputs/evaluations/checkpoints-best-*/embedded-*/*.json"))) == len(CONTEXTS)
    assert (project / "dvc.lock").read_text() == lock
    (policy, digest), *_ = {(ours["model"], ours["model_digest"])}
    assert digest == folder_digest(project / "checkpoints" / policy), "a score leads to the weights it is of"


def test_a_clean_clone_pulls_everything_and_runs_nothing(demo, environment, tmp_path):
    project, _ = demo
    clone = tmp_path / "clone"
    commit = ["-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--allow-empty", "-qm", "trained"]
    for command, folder in ((["add", "-A"], project), (commit, project), (["clone", "-q", project, clone], tmp_path)):
        subprocess.run(["git", *command], cwd=folder, check=True)
    remote = ("remote", "add", "--local", "--default", "store", str(tmp_path / "store"))
    for folder, moves in ((project, "push"), (clone, "pull")):
        for arguments in (remote, (moves,)):
            result = run_module(folder, environment, "dvc", *arguments)
            assert result.returncode == 0, result.stdout + result.stderr
    assert "up to date" in run_module(clone, environment, "dvc", "status").stdout
    result = run_module(clone, environment, "dvc", "repro")
    assert result.returncode == 0 and "Running stage" not in result.stdout
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True)
    assert changed.stdout == "" and not (clone / "work").exists()
    for name in ("checkpoints", "data", "report", "metrics"):
        assert folder_digest(clone / name) == folder_digest(project / name)


def test_three_tasks_an_iteration_stand_in_prefect(demo, environment):
    trained = {"flows": {"name": {"any_": ["train"]}}, "sort": "START_TIME_DESC", "limit": 1}
    (run,) = ask(environment, "flow_runs/filter", trained)

    def counts() -> dict[str, int]:
        tasks = ask(environment, "task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}, "limit": 200})
        names = [task["name"].rsplit("-", 1)[0] for task in tasks]
        return {name: names.count(name) for name in ("rollout", "advantage", "train")}

    until(lambda: set(counts().values()) == {3}, seconds=60)  # the server's recorder is some seconds behind


def test_the_policy_loads_in_transformers_and_its_iterations_are_on_disk(demo):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from spo_core.tree import read_trees

    project, _ = demo
    final = project / "checkpoints" / "final"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(final), AutoTokenizer.from_pretrained(final)
    ids = tokenizer("7+5=?\n", return_tensors="pt", add_special_tokens=False, return_token_type_ids=False)
    assert model.generate(**ids, max_new_tokens=5).shape[1] > ids["input_ids"].shape[1]
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
    for number in (1, 2, 3):
        (folder,) = project.glob(f"work/train-*/iterations/{number:06d}")
        assert len(read_trees(folder / "trees.parquet")) == 4 and (folder / "COMPLETE").exists()
    assert list(project.glob("outputs/wandb/wandb/offline-run-*")), "W&B wrote no offline run"


def kill_when(process: subprocess.Popen, condition, limit: float = 300) -> None:
    """SIGKILL as soon as the condition holds; whatever the process started must go with it."""
    started = time.monotonic()
    while not condition():
        assert process.poll() is None, "the flow ended before it was killed"
        assert time.monotonic() - started < limit
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.exhaustive
def test_killed_and_run_again_ends_with_the_same_bits(demo, new_project, environment):
    """Killed in the warm-up under ``dvc repro``, and after an iteration in the experiment flow; test_killed.py has
    every other moment of training."""
    straight, _ = demo
    project = new_project()
    change(project, {"evaluate": {"contexts": CONTEXTS}})
    moments = [
        ("flows.demo", "work/warmup-*/checkpoints/000100/COMPLETE"),
        ("flows.experiment", "work/train-*/checkpoints/000002/COMPLETE"),
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for entry, moment in moments:
        process = subprocess.Popen(
            [sys.executable, "-m", entry],
            cwd=project,
            env=environment | {"PATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        kill_when(process, lambda moment=moment: any(project.glob(moment)))
    result = run_module(project, environment, "flows.experiment")
    assert result.returncode == 0, result.stdout + result.stderr
    for checkpoint in ("warmup", "final"):
        assert folder_digest(project / "checkpoints" / checkpoint) == folder_digest(
            straight / "checkpoints" / checkpoint
        )
    assert rows_without_timing(project) == rows_without_timing(straight)
    assert scores(project, "final") == scores(straight, "final")
    status = run_module(project, environment, "dvc", "status")
    assert "up to date" in status.stdout, status.stdout


def test_an_interrupt_from_the_keyboard_ends_it_at_once(demo, environment):
    """It reaches the whole process group; the server, of the flow's own here, must be there to be told."""
    project, _ = demo
    alone = {k: v for k, v in environment.items() if k != "PREFECT_API_URL"}
    options = ["--model", "final", "--cell", "arithmetic-long", "--set", "evaluate.samples=200"]
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.evaluate", *options],
        cwd=project,
        env=alone,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    started = time.monotonic()
    while not any(project.glob("work/evaluate-*/scratch/request.json")):
        assert process.poll() is None and time.monotonic() - started < 300
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command goes on from what is finished" in errors and "Traceback" not in errors


@pytest.fixture
def gsm8k_files(tmp_path) -> Path:
    """GSM8K's own files where they lie beside the checkout, else rows of the same form."""
    if SHARED_DATA.is_dir():
        return SHARED_DATA / "gsm8k"
    for split, count in (("train", 60), ("test", 10)):
        rows = [
            {
                "question": f"Ann\u2019s {split} box holds {n} pens. She buys {n + 2} more. How many are there?",
                "answer": f"There are {n} + {n + 2} = <<{n}+{n + 2}={2 * n + 2}>>{2 * n + 2} pens.\n#### {2 * n + 2}",
            }
            for n in range(count)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.exhaustive
def test_gsm8k_goes_through_every_stage(new_project, environment, gsm8k_files):
    project = new_project()
    source = f"data.source={gsm8k_files}"
    options = ["--preset", "gsm8k-smoke", "--set", source, "--set", "run.threads=1", "--name", "smoke"]
    result = run_module(project, environment, "flows.experiment", *options)
    assert result.returncode == 0, result.stdout + result.stderr
    output = project / "outputs" / "runs" / "smoke"
    rows = rows_without_timing(project)
    assert [r["iteration"] for r in rows] == [1, 2]
    for row in rows:  # a random policy seldom stops and is never right: no advantage, and that is said
        assert row["rollout/truncated_share"] > 0.5 and row["rollout/no_answer_share"] > 0
        assert row["rollout/reward"] == 0 and row["train/skipped"] == 1
        assert f"iteration {row['iteration']}: no segment has an advantage" in result.stderr
    cells = scores(output, "final")
    assert [cells[f"gsm8k-{name}"]["protocol"]["context_length"] for name in ("short", "medium", "long")] == [
        16,
        32,
        64,
    ]
    assert cells["gsm8k-long"]["protocol"]["questions"] == 8
    assert (output / "checkpoints" / "final.dvc").is_file(), "the run's policy was not versioned"
    assert not (project / "checkpoints").exists() and not (project / "dvc.lock").exists(), "the main run was touched"
