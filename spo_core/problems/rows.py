"""Reads the rows of a published problem set from files or from the hub, each with the place where it stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spo_core.errors import DataError
from spo_core.system.files import parse_json, read_jsonl

Row = tuple[str, int, Any]  # place for messages; number from 0, which ids contain; the row


@dataclass(frozen=True, slots=True)
class Hub:
    """A dataset of the hub; ``splits`` maps our ``train`` and ``test`` to its splits."""

    path: str
    splits: dict[str, str]
    config: str | None = None

    def rows(self, split: str, revision: str | None) -> Iterator[Row]:
        """Yield the rows of our ``split``, downloaded or from the local cache. Raises DataError where neither works."""
        try:
            import datasets
        except ImportError:
            raise DataError(
                f"data.source is not set, and the hub needs the package datasets; {_offline(self)}"
            ) from None
        datasets.disable_progress_bars()
        try:
            found = datasets.load_dataset(self.path, self.config, split=self.splits[split], revision=revision)
        except Exception as error:  # network, cache and hub raise errors of many types
            reason = " ".join(str(error).split())[:160]
            raise DataError(
                f"data.source is not set, and {self.path} cannot be had from the hub: {reason}\n{_offline(self)}"
            ) from None
        for number, row in enumerate(found):
            yield f"{self.path}, split {self.splits[split]}, row {number}", number, row


def _offline(hub: Hub) -> str:
    return f"download {hub.path} elsewhere and name its folder with --source or data.source"


def find_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of these files that exists in ``folder``, or None."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def file_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file of JSON lines or of one JSON list. Raises DataError where it is neither."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            if file.read(64).lstrip().startswith("["):
                file.seek(0)
                for number, row in enumerate(_parsed(str(path), file.read(), "a JSON list")):
                    yield f"{path}: row {number + 1}", number, row
                return
        for number, line in read_jsonl(path):
            if line.strip():
                yield f"{path}:{number}", number - 1, _parsed(f"{path}:{number}", line, "JSON")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error}") from None


def _parsed(where: str, text: str, kind: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise DataError(f"{where}: not {kind}: {error}") from None
