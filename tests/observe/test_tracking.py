import builtins
import json
import logging
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from spo_core.config import WandbParams, load_params
from spo_core.credit import assign_credit
from spo_core.credit.pairs import read_pairs, write_pairs
from spo_core.observe.trackers import Trackers
from spo_core.observe.trackers import wandb as tracking
from spo_core.observe.trackers.wandb import log_evaluation, resolve_mode
from spo_core.observe.tree_table import COLUMNS, asked, tree_rows
from spo_core.system.files import write_json
from spo_core.tree import read_trees
from tests.conftest import ROOT, random_tree
from tests.observe.wandb_files import logged, wandb_server


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "x"}, "online"),
        ("offline", {"WANDB_API_KEY": "x"}, "offline"),
        ("online", {"WANDB_MODE": "disabled"}, "disabled"),
    ],
)
def test_the_mode_follows_the_key_and_the_environment_wins(tmp_path, mode, environment, expected):
    assert resolve_mode(WandbParams(mode=mode), environment | {"NETRC": str(tmp_path / "none")}) == expected


def test_a_key_in_netrc_counts(tmp_path):
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    assert resolve_mode(WandbParams(), {"NETRC": str(tmp_path / "netrc")}) == "online"


def test_training_goes_on_without_wandb(tmp_path, monkeypatch, caplog):
    real = builtins.__import__

    def broken(name, *arguments, **options):
        if name == "wandb":
            raise ImportError("no wandb today")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", broken)
    monkeypatch.setenv("WANDB_MODE", "offline")
    with Trackers(load_params(ROOT), tmp_path, tmp_path, "run") as tracker:
        tracker.log({"iteration": 1, "train/loss": 1.0})
    assert "no wandb today" in caplog.text


def test_disabled_touches_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with Trackers(load_params(ROOT), tmp_path, tmp_path, "run") as tracker:
        tracker.log({"iteration": 1, "train/loss": 1.0})
    assert list(tmp_path.iterdir()) == []


ROW = {"nightly/iteration": 7.0, "nightly/arithmetic-long/accuracy": 0.5}


@pytest.fixture
def started(monkeypatch) -> list[dict]:
    """What ``wandb.init`` was called with; what the run was told stands under ``run``."""
    import wandb

    calls = []

    def init(**arguments):
        run = Mock()
        calls.append(arguments | {"run": run})
        return run

    monkeypatch.setattr(wandb, "init", init)
    return calls


@pytest.mark.parametrize(("mode", "used"), [("online", "shared"), ("offline", "offline")])
def test_an_evaluation_joins_the_run_without_disturbing_its_training(tmp_path, monkeypatch, started, mode, used):
    monkeypatch.setenv("WANDB_MODE", mode)
    with Trackers(load_params(ROOT), tmp_path, tmp_path, "run"):
        log_evaluation(load_params(ROOT), tmp_path, tmp_path, ROW)
    training, evaluation = started
    assert evaluation["id"] == training["id"] and training["mode"] == mode and evaluation["mode"] == used
    assert not evaluation["settings"].x_primary and not evaluation["settings"].x_update_finish_state
    evaluation["run"].log.assert_called_once_with(ROW)  # without a step, of which training has its own
    evaluation["run"].define_metric.assert_called_with("nightly/*", step_metric="nightly/iteration")
    evaluation["run"].finish.assert_called_once_with()


def test_an_evaluation_is_never_stopped_by_wandb(tmp_path, monkeypatch, caplog, started):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    log_evaluation(load_params(ROOT), tmp_path, tmp_path, ROW)
    assert not started and list(tmp_path.iterdir()) == []
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("wandb.init", Mock(side_effect=OSError("no wandb tonight")))
    log_evaluation(load_params(ROOT), tmp_path, tmp_path, ROW)
    assert "no wandb tonight" in caplog.text


def row(iteration: int) -> dict:
    """As in metrics.jsonl: a step has other keys where it validates."""
    validated = {"eval/validation_accuracy": iteration / 10} if iteration % 2 == 0 else {}
    return {"iteration": iteration, "rollout/reward": 1 / iteration, "train/skipped": 0} | validated


def same(history: list[dict]) -> list[dict]:
    """Without what W&B adds."""
    return [{key: value for key, value in one.items() if not key.startswith("_")} for one in history]


@pytest.fixture
def wandb_afresh(monkeypatch):
    """W&B reads its settings when its process starts."""
    import wandb

    monkeypatch.setattr(tracking, "START_LIMIT", 4.0)
    monkeypatch.setattr(tracking, "END_LIMIT", 4.0)
    wandb.teardown()
    yield
    wandb.teardown()


def online(monkeypatch, url: str) -> None:
    for name, value in {"WANDB_BASE_URL": url, "WANDB_API_KEY": "a" * 40, "WANDB_MODE": "online"}.items():
        monkeypatch.setenv(name, value)


def warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == tracking.__name__ and r.levelno >= logging.WARNING]


def newest(root: Path) -> Path:
    return max(root.glob("outputs/wandb/wandb/*run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)


def kept(root: Path) -> list[dict]:
    """What the newest folder holds, once W&B's own process has written it: that may be after ``finish``."""
    for _ in range(100):
        if logged(newest(root)):
            break
        time.sleep(0.2)
    time.sleep(0.2)
    return same(logged(newest(root)))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["refuses", "hangs", "errors"])
def test_a_server_that_does_not_answer_costs_a_bounded_time_and_one_warning(
    tmp_path, monkeypatch, caplog, wandb_afresh, how
):
    with wandb_server(how) as server:
        online(monkeypatch, server.url)
        started = time.monotonic()
        with Trackers(load_params(ROOT), tmp_path, tmp_path, "run") as tracker:
            began = time.monotonic()
            for iteration in range(1, 5):
                tracker.log(row(iteration))
            assert time.monotonic() - began < 5  # no iteration waits for it
        assert time.monotonic() - started < 60
    assert len(warnings(caplog)) == 1 and "metrics.jsonl" in warnings(caplog)[0]
    assert kept(tmp_path) == [row(i) for i in range(1, 5)]  # for wandb sync


@pytest.mark.slow
@pytest.mark.parametrize("how", ["hangs", "errors"])
def test_a_server_that_fails_on_the_way_costs_no_iteration_and_one_warning(
    tmp_path, monkeypatch, caplog, wandb_afresh, how
):
    with wandb_server() as server:
        online(monkeypatch, server.url)
        with Trackers(load_params(ROOT), tmp_path, tmp_path, "run") as tracker:
            assert tracker.where["url"].startswith(server.url)
            tracker.log(row(1))
            server.how = how
            began = time.monotonic()
            for iteration in range(2, 5):
                tracker.log(row(iteration))
            assert time.monotonic() - began < 5
            began = time.monotonic()
        assert time.monotonic() - began < 60
    assert len(warnings(caplog)) == 1 and "wandb sync" in warnings(caplog)[0]
    assert kept(tmp_path) == [row(i) for i in range(1, 5)]


@pytest.mark.slow
def test_online_a_resumed_run_sends_what_the_server_lacks_and_nothing_twice(tmp_path, monkeypatch, wandb_afresh):
    monkeypatch.setattr(tracking, "START_LIMIT", 60.0)
    monkeypatch.setattr(tracking, "END_LIMIT", 60.0)
    write_json(tmp_path / "wandb.json", {"id": "abcd1234"})
    with wandb_server(known=2) as server:
        online(monkeypatch, server.url)
        with Trackers(load_params(ROOT), tmp_path, tmp_path, "run", [row(i) for i in (1, 2, 3)]) as tracker:
            assert tracker.where["id"] == "abcd1234"
            tracker.log(row(4))
    assert same(server.rows) == [row(3), row(4)]


@pytest.mark.slow
def test_offline_every_start_has_the_same_id_and_the_whole_run_each_iteration_once(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    params = load_params(ROOT)
    with Trackers(params, tmp_path, tmp_path, "run") as tracker:
        first = tracker.where
        for iteration in (1, 2, 3):
            tracker.log(row(iteration))
    time.sleep(1.1)  # W&B names folders by the second
    history = [row(1), row(2)]  # a kill undid the third
    with Trackers(params, tmp_path, tmp_path, "run", history) as tracker:
        assert tracker.where == first and first["id"] == json.loads((tmp_path / "wandb.json").read_text())["id"]
        for iteration in (3, 4):
            tracker.log(row(iteration))
    files = list(tmp_path.glob(f"outputs/wandb/wandb/offline-run-*-{first['id']}/*.wandb"))
    assert len(files) == 2 and kept(tmp_path) == [row(i) for i in (1, 2, 3, 4)]


@pytest.fixture
def iterations(tmp_path) -> Path:
    """Folders of two iterations with three trees each."""
    rng = np.random.default_rng(0)
    params = load_params(ROOT)
    for number in (1, 2):
        folder = tmp_path / "iterations" / f"{number:06d}"
        folder.mkdir(parents=True)
        trees = [random_tree(rng, depth=2, widest=3, longest=5) for _ in range(3)]
        write_pairs(folder, [(tree, assign_credit(tree, params.credit)) for tree in trees])
        write_json(folder / "questions.json", [{"question_id": "q", "question": "2 + 2?"}])
    return tmp_path / "iterations"


def table(iterations: Path, number: int, trees: int):
    folder = iterations / f"{number:06d}"
    return tree_rows(read_pairs(folder)[:trees], asked(folder), lambda ids: " ".join(map(str, ids)))


def test_a_table_has_a_row_for_every_segment_of_its_trees(iterations):
    sampled = read_trees(iterations / "000001" / "trees.parquet")
    for count in (1, 2, 3, 9):
        rows = [dict(zip(COLUMNS, one, strict=True)) for one in table(iterations, 1, count)]
        segments = [(t, i, n) for t, tree in enumerate(sampled[:count]) for i, n in enumerate(tree.nodes) if i > 0]
        assert len(rows) == len(segments)
        for one, (tree, index, node) in zip(rows, segments, strict=True):
            assert (one["tree"], one["segment"], one["parent"]) == (tree, index, node.parent)
            assert one["text"] == " ".join(map(str, node.token_ids)) and one["tokens"] == len(node.token_ids)
            assert one["mean logprob"] == pytest.approx(float(np.mean(node.logprobs)), rel=1e-5)
            assert one["reward"] == (None if np.isnan(node.reward) else node.reward) and one["question"] == "2 + 2?"


def test_w_and_b_gets_a_table_of_trees_at_the_interval(tmp_path, monkeypatch, iterations):
    monkeypatch.setenv("WANDB_MODE", "offline")
    params = load_params(ROOT, None, ("run.wandb.trees_every=2", "run.wandb.trees=2"))
    with Trackers(params, tmp_path, tmp_path, "run", (), lambda number: table(iterations, number, 2)) as tracker:
        for number in (1, 2, 3):
            tracker.log(row(number))
    (found,) = tmp_path.glob("outputs/wandb/wandb/offline-run-*/files/media/table/*.table.json")
    content = json.loads(found.read_text())
    assert content["columns"] == list(COLUMNS)
    assert json.dumps(content["data"]) == json.dumps(table(iterations, 2, 2))
    assert ["trees" in "".join(one) for one in kept(tmp_path)] == [False, True, False]
