import builtins
from unittest.mock import Mock

import pytest

from spo_core.config import WandbParams, load_params
from spo_core.observe.tracking import Tracker, log_evaluation, resolve_mode
from tests.conftest import ROOT


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
    with Tracker(load_params(ROOT), tmp_path, tmp_path, "run") as tracker:
        tracker.log({"train/loss": 1.0}, step=1)
    assert "no wandb today" in caplog.text


def test_disabled_touches_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with Tracker(load_params(ROOT), tmp_path, tmp_path, "run") as tracker:
        tracker.log({"train/loss": 1.0}, step=1)
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
    with Tracker(load_params(ROOT), tmp_path, tmp_path, "run"):
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
