"""A disk that fills up while a flow trains: said in a line, nothing lost, and the same bits once there is room."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spo_core.system.files import folder_digest
from tests.flows.crash import Ended, Kill, Starts, starts
from tests.flows.outcome import complete_checkpoints, leftovers, result, work

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(sys.platform != "linux", reason="mounts file systems"),
]
NAMESPACE = ["unshare", "--mount", *(["--user", "--map-root-user"] if os.geteuid() else [])]
MOUNTS = """
set -e
for name in work checkpoints; do mkdir -p "$0/$name"; mv "$0/$name" "$0/.$name"; mkdir "$0/$name"
mount -t tmpfs -o size=64m,mode=755 test "$0/$name"; cp -r "$0/.$name/." "$0/$name"; done
exec "$@"
"""


@pytest.fixture
def project(copy) -> Path:
    return copy()


@pytest.fixture
def small_disks(project, prepared, environment, tmp_path) -> Iterator[Starts]:
    """Starts that see a file system of its own at each of the project's work/ and checkpoints/."""
    trial = [*NAMESPACE, "mount", "-t", "tmpfs", "test", str(tmp_path)]
    if not _can(trial):
        pytest.skip(f"file systems cannot be mounted here: {' '.join(trial)} fails")
    prefix = [*NAMESPACE, "sh", "-c", MOUNTS, str(project)]
    with starts(prepared, environment, tmp_path, prefix) as server:
        yield server


def _can(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def fill(folder: Path, leave: int) -> None:
    """Leave so many bytes free on the folder's file system, rounded down to pages."""
    ballast = folder / "ballast"
    ballast.unlink(missing_ok=True)
    disk = os.statvfs(folder)
    with ballast.open("wb") as file:
        file.write(bytes(max(0, disk.f_bavail * disk.f_frsize - leave)))


def refused(ended: Ended, path: Path, words: str) -> None:
    """In one line, which names the path, and with exit status 2."""
    assert ended.status == 2, ended.stderr
    said = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "Traceback" not in ended.stderr, ended.stderr
    assert said[0].startswith(f"error: {path}") and f": {words}; " in said[0], said[0]
    assert said[0].endswith("and run the same command again")
    assert ended.stderr.rstrip().endswith(said[0])


@pytest.mark.exhaustive
def test_full_in_rollout_checkpoint_and_publishing(project, small_disks, straight):
    uninterrupted, _ = straight
    seen = small_disks.seen(project)
    weights = (seen / "checkpoints" / "warmup" / "model.safetensors").stat().st_size
    begun = small_disks.run(project, kill=Kill("rollout", event=0))
    assert begun.status == -9
    run = project / work(seen).relative_to(seen)

    fill(seen / "work", 8192)  # the lock is written anew
    ended = small_disks.run(project)
    refused(ended, run, "No space left on device")
    assert ended.trace[-1].phase == "rollout"

    fill(seen / "work", int(1.7 * weights))  # the weights have room, the optimizer has not
    ended = small_disks.run(project)
    refused(ended, run / "checkpoints" / "000002", "No space left on device")
    assert ended.trace[-1].phase == "checkpoint"
    assert complete_checkpoints(seen) == [] and leftovers(seen) == []

    fill(seen / "work", int(4.7 * weights))  # for a checkpoint and a best policy, not for the next checkpoint
    ended = small_disks.run(project)
    refused(ended, run / "checkpoints" / "000004", "No space left on device")
    assert complete_checkpoints(seen) == [2] and leftovers(seen) == []
    kept = folder_digest(work(seen) / "checkpoints" / "000002")

    (seen / "work" / "ballast").unlink()
    fill(seen / "checkpoints", weights // 2)
    ended = small_disks.run(project)
    refused(ended, project / "checkpoints" / "final", "No space left on device")
    assert ended.trace[-1].phase == "publish"
    assert complete_checkpoints(seen)[-1] == 8 and leftovers(seen) == []
    assert kept and sorted(p.name for p in (seen / "checkpoints").iterdir()) == ["ballast", "warmup"]

    (seen / "checkpoints" / "ballast").unlink()
    ended = small_disks.run(project)
    assert ended.status == 0, ended.stderr
    assert result(seen) == result(uninterrupted) and leftovers(seen) == []


@pytest.mark.exhaustive
def test_a_limit_on_the_size_of_files(project, quick, straight):
    """What an unprivileged user can have: a write that stops in the middle of a file."""
    uninterrupted, _ = straight
    weights = (project / "checkpoints" / "warmup" / "model.safetensors").stat().st_size
    for share in (0.5, 1.5):  # in the weights, and in the optimizer's state
        ended = quick.run(project, file_size=int(share * weights))
        refused(ended, work(project) / "checkpoints" / "000002", "File too large")
        assert ended.trace[-1].phase == "checkpoint"
        assert complete_checkpoints(project) == [] and leftovers(project) == []
    ended = quick.run(project, file_size=4096)  # the lock and the manifest have room
    refused(ended, work(project), "File too large")
    assert ended.trace[-1].phase == "rollout"
    ended = quick.run(project)
    assert ended.status == 0, ended.stderr
    assert result(project) == result(uninterrupted) and leftovers(project) == []
