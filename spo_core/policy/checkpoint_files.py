"""Checks the files of a checkpoint before any of them is loaded: cheap, without torch, and one line for each fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from spo_core.errors import DataError, first_line

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OBJECTS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
_POINTER = b"version https://git-lfs"
_PULL = "is a pointer of Git LFS, not the file; fetch it with git lfs pull"


def check_files(folder: Path) -> None:
    """Raise DataError where a folder is no checkpoint, or one of its files is a pointer, empty, truncated or damaged.

    Read are the weights' headers, which say how long each file must be; not the weights.
    """
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: no checkpoint here (config.json is missing)")
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in (".json", ".safetensors", ".model")):
        with path.open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise DataError(f"{path}: {_PULL}")
    for path in (folder / name for name in OBJECTS):
        ends = read_object(path).get("eos_token_id") if path.is_file() else None
        if not all(isinstance(end, int) for end in (ends if isinstance(ends, list) else [ends or 0])):
            raise DataError(f"{path}: eos_token_id must be a token's id or a list of them")
    for path in _weights(folder):
        if not path.is_file():
            raise DataError(f"{path}: missing, and {INDEX} names it; fetch the whole checkpoint again")
        try:
            with safe_open(path, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            size = f"{path.stat().st_size:,} bytes"
            raise DataError(
                f"{path}: damaged, or not all of it is here ({size}; {first_line(error)}); fetch it again"
            ) from None


def _weights(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        shards = read_object(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise DataError(f"{folder / INDEX}: has no weight_map of files; fetch it again")
        return [folder / name for name in sorted(set(shards.values()))]
    if not (folder / WEIGHTS).is_file():
        raise DataError(f"{folder}: its weights are not in safetensors, the one format that is read")
    return [folder / WEIGHTS]


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises DataError where the file holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a JSON object")
    return content


def why_unreadable(error: Exception) -> str:
    """The first line of an error of transformers about a checkpoint; its advice to allow remote code is replaced."""
    line = first_line(error)
    return "it needs code of its own, which is not run" if "custom code" in line else line
