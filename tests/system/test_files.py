"""Writing is whole or not at all, also where the kernel stops it in the middle of a file."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import spo_core
from spo_core.errors import DiskError, TrainingError
from spo_core.system import dvc
from spo_core.system.files import OF_FILES, atomic_directory, disk_error, publish, room_at, system_error, write_text

LIMIT = 20_000  # bytes a file may have
ROOT = Path(spo_core.__file__).resolve().parents[1]
LIMITED = f"""
import os, resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT}, {LIMIT}))
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from safetensors.numpy import save_file
from spo_core.system import command_line
from spo_core.system.files import *
noise = np.random.default_rng(0).random(10_000)
here, source = Path("target"), Path("source")
def directory(fill):
    def write():
        with atomic_directory(here) as folder: fill(folder)
    return write
def copied():
    def link(*arguments): raise OSError("another file system")
    os.link = link
    publish(source, here)
ways = dict(
    text=lambda: write_text(here, "x" * 30_000),
    parquet=directory(lambda folder: pq.write_table(pa.table({{"noise": noise}}), folder / "a.parquet")),
    safetensors=directory(lambda folder: save_file({{"noise": noise}}, folder / "a.safetensors")),
    copied=copied,
)
way = ways[sys.argv.pop()]
command_line.run(lambda: way())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sets a limit of the kernel")
@pytest.mark.parametrize(
    ("way", "kind"),
    [("text", "file"), ("copied", "file"), ("copied", "folder"), ("parquet", "folder"), ("safetensors", "folder")],
)
def test_a_write_that_fails_half_way_is_refused_in_a_line_and_leaves_what_was_there(tmp_path, way, kind):
    source, target = tmp_path / "source", tmp_path / "target"
    if kind == "folder":
        source.mkdir()
        target.mkdir()
    large, kept = (source / "large", target / "kept") if kind == "folder" else (source, target)
    large.write_bytes(b"x" * 2 * LIMIT)
    kept.write_text("before")
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, way],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    advice = "raise the limit on the size of files (ulimit -f) and run the same command again"
    assert result.stderr == f"error: target: File too large; {advice}\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source", "target"]
    assert kept.read_text() == "before" and (kind == "file" or list(target.iterdir()) == [kept])


def full(filename: str | None = None) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), filename)


def test_a_full_disk_is_known_by_its_number_or_its_words():
    assert str(disk_error(full("a/b"))).startswith("a/b: No space left on device; free some space there and run")
    words = TrainingError("rank 0 failed: SafetensorError: I/O error: No space left on device (os error 28)")
    assert str(disk_error(words, Path("a"))).startswith("a: No space left on device; ")
    assert disk_error(OSError(errno.EACCES, "Permission denied", "a")) is None and disk_error(ValueError("28")) is None


def test_the_innermost_place_is_named_or_the_very_file():
    with pytest.raises(DiskError, match=r"^work/train-1/trees\.parquet: "), room_at(Path("work/train-1")):
        raise full("work/train-1/trees.parquet")
    with pytest.raises(DiskError, match=r"^work/final: "), room_at(Path("work")), room_at(Path("work/final")):
        raise full("work/.final.tmp/weights")
    with pytest.raises(DiskError, match=r"^/dev/shm/psm_1: "), room_at(Path("/data/work/train-1")):
        raise full("/dev/shm/psm_1")
    with pytest.raises(KeyError), room_at(Path("work")):
        raise KeyError("something else")


def test_a_folder_that_cannot_take_its_place_leaves_the_one_that_had_it(tmp_path, monkeypatch):
    target, rename = tmp_path / "final", Path.rename

    def refuse(path: Path, to: Path) -> Path:
        if path.name == ".final.tmp":
            raise full(str(path))
        return rename(path, to)

    target.mkdir()
    (target / "kept").write_text("before")
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(DiskError), atomic_directory(target) as folder:
        (folder / "new").write_text("after")
    assert [p.name for p in tmp_path.iterdir()] == ["final"] and [p.name for p in target.iterdir()] == ["kept"]


def test_a_file_is_replaced_as_a_whole_and_shares_the_bytes(tmp_path):
    source, target = tmp_path / "a.json", tmp_path / "out" / "b.json"
    write_text(source, json.dumps({"a": 1}))
    for _ in range(2):  # the second time both are links to one file
        publish(source, target)
        assert target.stat().st_ino == source.stat().st_ino
        assert [p.name for p in target.parent.iterdir()] == ["b.json"]


def test_what_dvc_says_is_told_without_its_farewell():
    output = "WARNING: x\nERROR: failed to get 'a' - no storage:\nmissing b\n\nHaving any troubles? Hit us up at ..."
    assert dvc._reason(output) == "failed to get 'a' - no storage: missing b"
    assert (dvc._reason(""), dvc._reason("boom")) == ("no output", "boom")


@pytest.mark.parametrize("number", OF_FILES)
def test_a_file_that_the_system_does_not_give_is_a_refusal_and_other_errors_are_not(number):
    assert str(system_error(OSError(number, "x", "/a/b"))) == f"/a/b: {os.strerror(number)}"
    assert system_error(OSError(number, "x")) is None and system_error(ValueError("x")) is None
