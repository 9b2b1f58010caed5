"""Writing that is never half done: temporary sibling, then an atomic rename."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Give a temporary sibling to fill; on success it takes the target's place, on an error it is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        replaced = target.with_name(f".{target.name}.old")
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():
            target.rename(replaced)
        temporary.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def publish(source: Path, target: Path) -> None:
    """Put a finished file or folder at its published place: hard links where the file system allows, then a rename."""
    if source.is_dir():
        with atomic_directory(target) as temporary:
            shutil.copytree(source, temporary, copy_function=_link_or_copy, dirs_exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary_file = target.with_name(f".{target.name}.tmp")
    temporary_file.unlink(missing_ok=True)
    _link_or_copy(str(source), str(temporary_file))
    os.replace(temporary_file, target)
    temporary_file.unlink(missing_ok=True)  # still there where both were links to one file


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, sort_keys=False, allow_nan=False) + "\n")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """One line a row under the first row's keys; an empty file where there is none."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_text(path, text.getvalue())


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_jsonl(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1. Unlike ``str.splitlines`` it breaks at line feeds only, as JSON lines do."""
    with path.open(encoding="utf-8", newline="\n") as file:
        yield from enumerate(file, start=1)


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 over names and contents of all files below a folder."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(f"{path.relative_to(folder).as_posix()}\0{file_digest(path)}\n".encode())
    return total.hexdigest()
