"""What names a policy, and what is refused."""

from __future__ import annotations

import subprocess

import pytest

from spo_core.errors import ConfigError, DataError
from spo_core.evaluate.models import folder_model, refer
from spo_core.paths import Paths


def policy_at(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("weights")
    return folder


def test_a_name_is_read_as_what_it_is(tmp_path):
    paths = Paths(tmp_path)
    policy_at(tmp_path / "checkpoints" / "final")
    policy_at(tmp_path / "elsewhere" / "policy")
    for command in (
        ["init", "-q"],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True).stdout.strip()
    assert refer("final", paths).kind == "checkpoint"
    assert (
        refer("elsewhere/policy", paths).kind == refer(str(tmp_path / "elsewhere" / "policy"), paths).kind == "folder"
    )
    found = refer("HEAD:checkpoints/final", paths)
    assert (found.kind, found.location, found.revision) == ("revision", "checkpoints/final", head)
    hub = refer("gyr66/spo-tree-666-qwen1.5B-math@v1", paths)
    assert (hub.kind, hub.location, hub.revision) == ("hub", "gyr66/spo-tree-666-qwen1.5B-math", "v1")


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("warmup", DataError, "no such checkpoint"),
        ("empty", DataError, "config.json is missing"),
        ("pickled", DataError, "not in safetensors"),
        ("nothing:checkpoints/final", DataError, "git knows no revision"),
        ("last", ConfigError, "neither one of warmup, final, best"),
        ("a/b/c", ConfigError, "neither"),
        ("", DataError, "config.json is missing"),
    ],
)
def test_what_is_no_policy_is_refused(tmp_path, name, error, says):
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    (tmp_path / "pickled" / "pytorch_model.bin").write_text("x")
    with pytest.raises(error, match=says):
        refer(name, Paths(tmp_path))


def test_scores_of_other_weights_under_one_name_have_another_place(tmp_path):
    folder = policy_at(tmp_path / "policy")
    before = folder_model("policy", folder)
    (folder / "model.safetensors").write_text("other weights")
    after = folder_model("policy", folder)
    assert before.digest != after.digest and before.label != after.label
    assert "/" not in folder_model("runs/a b/../x", folder).label
