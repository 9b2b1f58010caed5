"""Runs as they are found, what sets them apart, their curves, and the links to their pages."""

from __future__ import annotations

import io
import json
import shutil
import socketserver
import threading
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from rich.console import Console

from spo_core.errors import DataError
from spo_core.observe import formatting
from spo_core.observe.formatting import visible
from spo_core.observe.report import write_report
from spo_core.observe.view_link import announced, invitation, running_view
from spo_core.paths import Paths
from spo_core.runs.directory import open_run
from spo_core.runs.provenance import Caller, record_attempt, record_policy
from spo_core.system.files import write_json
from spo_core.view.catalogue import differing, find_run, find_runs, named_run, peculiar, seed_groups
from spo_core.view.figures import GRID, SUBJECTS, TOGETHER, band, compared_figure, label, run_figures
from spo_core.view.health import signs
from spo_core.view.terminal import print_view
from tests.conftest import ROOT
from tests.observe.examples import decode, inputs
from tests.view.conftest import HOSTILE, first_question, serving, trained


def make(paths: Paths, name: str, rows: list[dict] | None = None, kind: str = "train", **identity) -> Path:
    run = paths.work / f"{kind}-{name}"
    run.mkdir(parents=True)
    write_json(run / "manifest.json", {"identity": identity, "provenance": {}})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows or []))
    return run


@pytest.fixture
def paths(tmp_path, monkeypatch) -> Paths:
    monkeypatch.delenv("SPO_WORK_DIR", raising=False)
    return Paths(tmp_path)


def test_a_run_is_listed_once_and_runs_while_its_lock_is_held(project):
    runs = {run.key: run for run in find_runs(project)}
    assert len(runs) == 2
    run = find_run(project, "published/main")
    assert (run.key, run.title, run.state) == (f"work/{trained(project).name}", "main", "finished")
    assert runs["work/train-<b>hostile"].state == "stopped"
    identity = json.loads((run.folder / "manifest.json").read_text())["identity"]
    with open_run(project.work, "train", identity, project.root):
        assert find_run(project, run.key).state == "running"
    assert find_run(project, run.key).state == "finished"


@pytest.mark.parametrize(
    ("kind", "made", "published", "state"),
    [
        ("train", 3, [3], "finished"),
        ("train", 5, [3], "stopped"),  # extended, then killed
        ("train", 5, [3, 5], "finished"),
        ("train", 3, [], "stopped"),
        ("train", 0, [], "stopped"),
        ("replay", 3, [3], "finished"),
        ("rollouts", 4, [], "finished"),
        ("rollouts", 3, [], "stopped"),
        ("rollouts", 0, [], "stopped"),
    ],
)
def test_a_run_is_finished_once_all_that_was_asked_for_is_there(paths, kind, made, published, state):
    shutil.copytree(ROOT / "params", paths.root / "params")
    run = make(paths, "a", [{"iteration": i + 1} for i in range(made)], kind)
    record_attempt(run, paths.root, 1, Caller(overrides=("run.iterations=4",)))
    for iteration in published:
        (folder := paths.root / f"policy{iteration}").mkdir()
        (folder / "config.json").write_text(str(iteration))
        record_policy(run, "final", iteration, folder)
    assert find_run(paths, f"work/{kind}-a").state == state


def test_a_clone_without_work_has_what_was_published(project, tmp_path):
    clone = tmp_path / "clone"
    shutil.copytree(project.root, clone, ignore=lambda folder, names: ["work"] if Path(folder) == project.root else [])
    (run,) = find_runs(Paths(clone))
    assert (run.key, run.state, list(run.iteration_folders())) == ("published/main", "finished", [3])
    assert run.params == find_run(project, "published/main").params
    with serving(Paths(clone)) as origin:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert opener.open(f"{origin}/run/published/main/iteration/3").status == 200


def test_names_are_found_and_ambiguous_ones_refused(paths):
    make(paths, "a")
    make(paths, "b")
    assert named_run(paths, "train-a").key == named_run(paths, "work/train-a").key == "work/train-a"
    assert named_run(paths, str(paths.work / "train-b")).key == "work/train-b"
    with pytest.raises(DataError, match="there are: work/train-"):
        named_run(paths, "c")


def test_what_differs_and_seeds_that_belong_together(paths):
    for number in range(6):
        make(paths, f"s{number}", run={"seed": number % 3}, learn={"learning_rate": 1e-4 if number < 5 else 1e-3})
    runs = sorted(find_runs(paths), key=lambda run: run.key)
    assert differing(runs) == {"learn.learning_rate": [1e-4] * 5 + [1e-3], "run.seed": [0, 1, 2, 0, 1, 2]}
    assert peculiar(runs)["work/train-s5"] == {"learn.learning_rate": 1e-3, "run.seed": 2}
    assert "learn.learning_rate" not in peculiar(runs)["work/train-s0"]
    assert sorted(map(len, seed_groups(runs))) == [1, 5]


def mixed(*weights: float) -> dict:
    return {f"set{i}": {"template": "plain", "weight": weight, "grader": None} for i, weight in enumerate(weights)}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"prompts": mixed(1, 2)}, {"prompts": mixed(1, 3)}),
        ({"prompts": mixed(1, 2)}, {"prompts": mixed(1, 2) | {"set0": {"template": "boxed"}}}),
        *(({}, {key: "0" * 64}) for key in ("replay", "prover", "policy")),
        ({"custom": {"credit.value": "0" * 64}}, {"custom": {"credit.value": "1" * 64}}),
        ({}, {"kind": "rollouts", "rollouts_only": True}),
    ],
)
def test_runs_that_differ_in_more_than_their_seed_are_no_seeds(paths, one, other):
    for seed, more in enumerate((one, other)):
        for name in "ab":
            make(paths, f"{name}{seed}", **{"run": {"seed": 2 * seed + (name == "a")}, "policy": "f" * 64} | more)
    assert sorted(map(len, seed_groups(find_runs(paths)))) == [2, 2]


def test_all_that_decides_the_weights_tells_runs_apart(project):
    """Of a real run's identity, whatever changes but seed and code, makes it another group."""
    run = find_run(project, "published/main")
    for key in run.record.identity.keys() - {"run", "code"}:
        other = replace(run, record=replace(run.record, identity=run.record.identity | {key: {"changed": "x"}}))
        assert len(seed_groups([run, other])) == 2, key


def test_bands_are_mean_and_standard_error():
    rng = np.random.default_rng(0)
    same = [(list(range(1, 9)), rng.random(8).tolist()) for _ in range(4)]
    shade, mean = band(same, "x")
    values = np.array([y for _, y in same])
    np.testing.assert_allclose(mean["y"], values.mean(0))
    np.testing.assert_allclose(np.array(shade["y"][:8]) - mean["y"], values.std(0, ddof=1) / 2)
    shifted = [([x + 0.3 * k for x in xs], ys) for k, (xs, ys) in enumerate(same)]
    _, mean = band(shifted, "x")
    assert len(mean["x"]) == GRID and (mean["x"][0], mean["x"][-1]) == (pytest.approx(1.9), 8)
    at = mean["x"][77]
    expected = np.mean([np.interp(at, x, y) for x, y in shifted])
    assert mean["y"][77] == pytest.approx(expected)


def test_figures_are_plotlys_and_their_text_is_text(project):
    for x in ("iteration", "tokens", "seconds"):
        rows = find_run(project, "published/main").rows()
        for figures in run_figures(rows, x).values():
            for figure in figures:
                go.Figure(figure)  # raises for what is no figure
    hostile = compared_figure([(HOSTILE[1], [rows])], "rollout/reward", "tokens")
    assert "<img" not in json.dumps(hostile) and "&lt;img" in json.dumps(hostile)


def test_every_metric_has_a_figure():
    names = [f"{prefix}/{name}" for prefix in (*SUBJECTS, "later", "<b>") for name in ("a_b", "mask_share", "<i>")]
    names += [name for group in TOGETHER for name in group]
    found = run_figures([{"iteration": i} | dict.fromkeys(names, 0.5 * i) for i in range(3)], "iteration")
    drawn = [curve["name"] for figures in found.values() for figure in figures for curve in figure["data"]]
    assert sorted(drawn) == sorted(label(name.partition("/")[2].replace("_", " ")) for name in dict.fromkeys(names))
    assert list(found)[: len(SUBJECTS)] == list(SUBJECTS.values()) and len(found["Critic"]) == 3


def test_signs_follow_their_thresholds():
    rows = [
        {"iteration": i, "train/clip_fraction": 0.1, "train/entropy": 1.0, "train/grad_norm": 1.0} for i in range(9)
    ]
    well = {sign.name: sign.well for sign in signs(rows, {}, 0.1)}
    assert well["clip fraction"] and well["entropy"] and well["gradient norm"] and well["groups without signal"]
    assert well["log-prob gap"] is None
    bad = {"train/clip_fraction": 0.9, "train/entropy": 0.01, "train/grad_norm": 50.0, "sync/logprob_gap_mean": 0.001}
    rows += [{"iteration": i, **bad} for i in range(9, 14)]
    ill = {sign.name: sign for sign in signs(rows, {}, 0.9)}
    assert not any(ill[name].well for name in (*well, "log-prob gap") if ill[name].well is not None)
    assert all(len(sign.why) > 60 for sign in ill.values())
    assert {s.name: s.well for s in signs(rows, {"learn.max_logprob_gap": 1.0}, 0.9)}["log-prob gap"]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("train/grad_norm", "gradient norm"),
        ("train/entropy", "entropy"),
        ("timing/generated_tokens_per_second", "tokens per second"),
        ("train/clip_fraction", "clip fraction"),
    ],
)
@pytest.mark.parametrize("count", [2, 3, 12])
def test_judged_is_the_mean_of_the_last_five_iterations(key, name, count):
    values = np.random.default_rng(count).uniform(1, 900, count)
    rows = [{"iteration": i, key: value} for i, value in enumerate(values)]
    found = {sign.name: sign for sign in signs(rows, {}, None)}[name]
    assert found.shown == formatting.number(float(np.mean(values[-5:])), 0 if name == "tokens per second" else 3)


def test_the_terminal_shows_text_as_text(project):
    out = io.StringIO()
    console = Console(file=out, width=200, highlight=False, force_terminal=False)
    run = find_run(project, "work/train-<b>hostile")
    print_view(project, run, None, None, console)
    print_view(project, run, 1, None, console)
    for number, text in enumerate(HOSTILE):
        print_view(project, run, None, visible(f"{text}-{number}"), console)
    shown = out.getvalue()
    assert "␛[31mred" in shown and "user⟨U+202E⟩gnp" in shown and "\x1b" not in shown and "\u202e" not in shown
    print_view(project, find_run(project, "published/main"), 1, first_question(project), console)
    with pytest.raises(DataError, match="keeps 1"):
        print_view(project, run, 7, None, console)
    with pytest.raises(DataError, match="not in any iteration"):
        print_view(project, run, None, "none", console)


def test_links_lead_to_a_view_that_is_running(project, tmp_path):
    assert invitation(project, "/evaluation", "main") == "Look at it: python -m flows.view main"
    with serving(project) as origin, announced(project, int(origin.rpartition(":")[2])):
        assert running_view(project) == origin
        assert invitation(project, "/evaluation") == f"Look at it: {origin}/evaluation"
        assert running_view(Paths(tmp_path)) is None
    assert running_view(project) is None and not (project.work / "view.json").exists()


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x16\x03\x01\x00\xff\xfe",
        b"220 mail ESMTP\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 300 + b"\r\n",
        b"HTTP/1.1 " + b"2" * 70_000 + b"\r\n",
        b"HTTP/1.1 500 No\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nlocation: http://[::1\r\n\r\n",
        b"+OK\r\n",
    ],
)
def test_another_program_at_the_port_is_no_view(paths, said):
    """What took the port of a view that was killed may speak anything."""

    class Speaks(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(said)

    with socketserver.TCPServer(("127.0.0.1", 0), Speaks) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        with announced(paths, server.server_address[1]):
            assert running_view(paths) is None
            assert (paths.work / "view.json").exists()


def test_the_report_links_to_the_runs_page(tmp_path):
    page = write_report(
        replace(inputs(), view="http://127.0.0.1:8421/run/published/main"), tmp_path, decode
    ).read_text()
    assert '<a href="http://127.0.0.1:8421/run/published/main">' in page
