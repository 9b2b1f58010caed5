"""Atomic writing (a temporary sibling, then a rename), reading, digests, and the error for a full disk."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from spo_core.errors import DiskError, SPOError

ADVICE = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there, or have the quota raised",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
}

LONGEST_NUMBER = 300  # digits; as long as a float's
OF_FILES = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)


@contextmanager
def room_at(path: Path) -> Iterator[None]:
    """Raise DiskError where the block fails because a disk is full; it names the file where one is known, else
    ``path``."""
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        refusal = disk_error(error, path)
        if refusal is None:
            raise
        raise refusal from error


def disk_error(error: Exception, path: Path | None = None) -> DiskError | None:
    """Return the DiskError for a failure that a full disk caused, None for any other. Libraries put the system's words
    in their own exceptions, often without its number."""
    for number, advice in ADVICE.items():
        if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
            named = getattr(error, "filename", None)
            if path is not None and not (named and _stands_apart(Path(named), path)):
                named = path
            return DiskError(f"{named or 'a file'}: {os.strerror(number)}; {advice} and run the same command again")
    return None


def system_error(error: Exception) -> SPOError | None:
    """The refusal for a named file that the system does not give because of what it is or who asks (rights, a folder in
    place of a file, a name too long); None for any other error."""
    named, number = getattr(error, "filename", None), getattr(error, "errno", None)
    if not isinstance(error, OSError) or named is None or number not in OF_FILES:
        return None
    return SPOError(f"{named}: {os.strerror(number)}")


def _stands_apart(named: Path, path: Path) -> bool:
    """Whether a file is worth naming beside ``path``: it lies below it, or elsewhere altogether, as in /dev/shm."""
    return named.is_relative_to(path) or (named.is_absolute() and not named.is_relative_to(path.parent))


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Give a temporary sibling to fill; on success it takes the target's place, on an error it is removed and
    the target is what it was."""
    temporary, replaced = (target.with_name(f".{target.name}.{suffix}") for suffix in ("tmp", "old"))
    try:
        with room_at(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            yield temporary
            shutil.rmtree(replaced, ignore_errors=True)
            if target.exists():
                target.rename(replaced)
            temporary.rename(target)
            shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        with suppress(OSError):
            if replaced.exists() and not target.exists():
                replaced.rename(target)
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Give a temporary sibling to write, as ``atomic_directory`` does for a folder."""
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with room_at(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            yield temporary
            os.replace(temporary, target)
    finally:  # it still exists after an error, and where both were links to one file
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def publish(source: Path, target: Path) -> None:
    """Put a finished file or folder at its published place: hard links where the file system allows, then a rename."""
    if source.is_dir():
        with atomic_directory(target) as folder:
            shutil.copytree(source, folder, copy_function=_link_or_copy, dirs_exist_ok=True)
    else:
        with atomic_file(target) as file:
            _link_or_copy(str(source), str(file))


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, sort_keys=False, allow_nan=False) + "\n")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one line a row under the first row's keys; an empty file where there is no row."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_text(path, text.getvalue())


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8-sig"))


class TooDeep(ValueError):
    """JSON with more levels than Python's parser takes."""


def parse_json(text: str) -> Any:
    """Parse JSON that people bring. Raises ValueError, with a reason of one line, for what is none and for what a
    reader could take in two ways: keys that stand twice, NaN, infinities, numbers beyond a float's."""
    try:
        return json.loads(
            text.lstrip("\ufeff"),
            parse_constant=_no_number,
            parse_float=_finite,
            parse_int=_whole,
            object_pairs_hook=_once,
        )
    except RecursionError:
        raise TooDeep("nested too deeply") from None


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _finite(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f"{digits[:20]} is beyond the largest number")
    return value


def _whole(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits):,} digits; write it as text if it is an answer")
    return int(digits)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in names if names.count(key) > 1)!r} stands twice")
    return found


def read_jsonl(path: Path) -> Iterator[tuple[int, str]]:
    """Yield lines with their numbers from 1. Unlike ``str.splitlines`` it breaks at line feeds only, as JSON lines
    do. A byte-order mark is no part of the first."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
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
