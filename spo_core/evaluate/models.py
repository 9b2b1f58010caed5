"""Finds the policy to evaluate: a run's checkpoint, a folder, a checkpoint that DVC has of a git revision, a hub id."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spo_core.errors import ConfigError, DataError, first_line
from spo_core.paths import Paths
from spo_core.system.files import folder_digest

CHECKPOINTS = ("warmup", "final", "best")
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True, slots=True)
class Model:
    """A policy on this machine. ``name`` is how it was asked for, ``label`` the name of the folder for its scores."""

    name: str
    folder: Path
    label: str
    digest: str
    """SHA-256 over the folder's files."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A policy that was asked for by name; ``location`` is a folder, a hub id, or a path in a git revision."""

    name: str
    kind: Literal["checkpoint", "folder", "revision", "hub"]
    location: str
    revision: str | None = None


def refer(name: str, paths: Paths) -> Reference:
    """Read a name: ``final``, ``work/x/policy``, ``v1.2:checkpoints/final``, ``owner/name@revision``; fetches nothing.

    Raises ConfigError for a name of no such form, and DataError for a checkpoint or revision that is missing.
    """
    if name in CHECKPOINTS:
        folder = paths.checkpoint(name)
        if not (folder / "config.json").is_file():
            raise DataError(
                f"{folder}: no such checkpoint; train it with python -m flows.train, or pull it with dvc pull"
            )
        return Reference(name, "checkpoint", str(folder))
    if (paths.root / name).is_dir():  # an absolute path too
        _check_policy(paths.root / name)
        return Reference(name, "folder", str(paths.root / name))
    revision, colon, path = name.partition(":")
    if colon and path:
        command = [
            "git",
            "-C",
            str(paths.root),
            "rev-parse",
            "--verify",
            "--quiet",
            "--end-of-options",
            f"{revision}^{{commit}}",
        ]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode != 0:
            raise DataError(f"{name}: git knows no revision {revision!r} here")
        return Reference(name, "revision", path, found.stdout.strip())
    if _HUB_ID.fullmatch(name):
        location, _, revision = name.partition("@")
        return Reference(name, "hub", location, revision or None)
    raise ConfigError(
        f"{name!r}: neither one of {', '.join(CHECKPOINTS)}, nor a folder, nor REVISION:PATH, nor a hub id OWNER/NAME"
    )


def folder_model(name: str, folder: Path) -> Model:
    """The policy in a folder. Raises DataError where there is none, or none in safetensors."""
    _check_policy(folder)
    digest = folder_digest(folder)
    return Model(name, folder.resolve(), f"{re.sub(r'[^A-Za-z0-9.]+', '-', name).strip('-.')}-{digest[:8]}", digest)


def download(reference: Reference) -> Path:
    """Download a hub model; returns its folder in the cache. Raises DataError where neither cache nor hub has it."""
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            reference.location, revision=reference.revision, allow_patterns=HUB_FILES, ignore_patterns=["*/*"]
        )
    except Exception as error:  # of many types, with messages of many lines
        why = first_line(error)
        raise DataError(f"{reference.name}: no folder here, and the hub does not give it: {why}") from None
    return Path(found)


def _check_policy(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: no checkpoint here (config.json is missing)")
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise DataError(f"{folder}: its weights are not in safetensors, the one format that is read")
