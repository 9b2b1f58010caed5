"""DVC calls that wait: for the repository lock, and for a stage that another process is running."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from spo_core.errors import DataError, SPOError

log = logging.getLogger(__name__)
BUSY = ("is busy", "Unable to acquire lock")
FAREWELL = "Having any troubles?"
MOST_LINES = 3  # of an error of DVC in a message
DELAYS = (1, 2, 5, 10, 20, 30)  # seconds before each retry


def is_repository(root: Path) -> bool:
    return (root / ".dvc").is_dir() and (root / ".git").exists()


def run_dvc(root: Path, *arguments: str, patient: bool = True) -> str:
    """Run one DVC command and return its output; raises SPOError with DVC's own words where it fails.

    ``patient`` waits for the repository's lock however long it is held; otherwise for about a minute.
    """
    command = [sys.executable, "-m", "dvc", *(["--wait-for-lock"] if patient else []), *arguments]
    for delay in (*DELAYS, None):
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        output = (result.stdout + result.stderr).strip()
        if result.returncode == 0:
            return output
        if delay is None or not any(words in output for words in BUSY):
            break
        log.info("dvc %s waits: %s", arguments[0], output.splitlines()[-1])
        time.sleep(delay)
    raise DvcError(f"dvc {' '.join(arguments)} failed: {_reason(output)}", _reason(output))


class DvcError(SPOError):
    """A DVC command that failed; ``reason`` is what DVC says is wrong."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def _reason(output: str) -> str:
    """What DVC says is wrong: its last ERROR, with the lines that go on with it, without the farewell after it."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and FAREWELL not in line]
    first = max((at for at, line in enumerate(lines) if line.startswith("ERROR")), default=max(len(lines) - 1, 0))
    said = " ".join(lines[first : first + MOST_LINES]).removeprefix("ERROR:").strip()
    return said or "no output"


def cache(root: Path) -> tuple[Path, tuple[str, ...]]:
    """Folder of DVC's cache, and the kinds of link to try in order, as its configuration says on all its levels."""
    lines = run_dvc(root, "config", "--list", patient=False).splitlines()
    told = dict(line.partition("=")[::2] for line in lines)  # what stands last holds
    kinds = tuple(kind.strip() for kind in told.get("cache.type", "reflink,copy").split(","))
    return Path(told.get("cache.dir") or root / ".dvc" / "cache"), kinds


def commit_stages(root: Path, *stages: str) -> None:
    """Record what the stages' outputs are now, as ``dvc repro`` would have."""
    run_dvc(root, "commit", "--force", *stages)


def add_output(root: Path, path: Path) -> None:
    """Version one output of a run with overrides; the stages' lock is not touched."""
    run_dvc(root, "add", str(path.relative_to(root)))


def add_milestones(root: Path, paths: Sequence[Path]) -> None:
    """Version policies of a run under way, which no stage has among its outputs. Training waits meanwhile."""
    run_dvc(root, "add", *(str(path.relative_to(root)) for path in paths), patient=False)


def is_added(path: Path) -> bool:
    """Whether the ``.dvc`` file of an output exists, so that it was added on its own."""
    return path.with_name(f"{path.name}.dvc").is_file()


def fetch(root: Path, revision: str, path: str, target: Path) -> None:
    """Fetch a file or folder as it was in a git revision, from DVC's cache or remote, or from git."""
    try:
        run_dvc(root, "get", ".", path, "--rev", revision, "--out", str(target), "--force")
    except DvcError as error:
        at = revision[:12]
        raise DataError(
            f"{path} of revision {at}: neither git nor DVC's cache and remote have it ({error.reason}); see that the "
            f"revision has this path and, where its content is elsewhere: git checkout {at}, dvc pull {path}"
        ) from None
