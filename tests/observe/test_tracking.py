import builtins

import pytest

from spo_core.config import WandbParams, load_params
from spo_core.observe.tracking import Tracker, resolve_mode
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
