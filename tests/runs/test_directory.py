"""The working directory: one owner, one identity, complete checkpoints only."""

import errno
import json
import os
import subprocess
import sys

import pytest

from spo_core.errors import RunError
from spo_core.runs.directory import check_run, open_run, provenance
from spo_core.system.files import atomic_directory, publish

IDENTITY = {"learn": {"learning_rate": 0.1}, "seed": 1}


def write_one(folder):
    (folder / "weights").write_text("abc")


def test_a_second_owner_is_refused_and_told_of_the_first(tmp_path):
    with open_run(tmp_path, "train", IDENTITY, tmp_path) as run:
        code = (
            "import sys; from pathlib import Path; from spo_core.runs.directory import open_run\n"
            "here = Path(sys.argv[1])\n"
            "with open_run(here, 'train', {'learn': {'learning_rate': 0.1}, 'seed': 1}, here): pass"
        )
        child = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
        assert f"{run.path} is in use by process" in child.stderr and " on " in child.stderr
    with open_run(tmp_path, "train", IDENTITY, tmp_path):
        pass


def test_the_fingerprint_names_the_directory(tmp_path):
    with open_run(tmp_path, "train", IDENTITY, tmp_path) as a, open_run(tmp_path, "train", {"seed": 2}, tmp_path) as b:
        assert a.path != b.path
    with open_run(tmp_path, "train", IDENTITY, tmp_path) as again:
        assert again.path == a.path


def test_a_named_run_with_other_params_is_refused_by_key_and_left_alone(tmp_path):
    with open_run(tmp_path, "train", IDENTITY, tmp_path, "mine") as run:
        before = (run.path / "manifest.json").read_bytes()
    other = {"learn": {"learning_rate": 0.2}, "seed": 1}
    for attempt in (check_run, lambda *a: open_run(a[0], a[1], a[2], tmp_path, a[3]).__enter__()):
        with pytest.raises(RunError, match=r"learn\.learning_rate \(was 0\.1, is 0\.2\).*run\.name"):
            attempt(tmp_path, "train", other, "mine")
    assert (run.path / "manifest.json").read_bytes() == before


def test_checking_a_run_writes_nothing(tmp_path):
    check_run(tmp_path, "train", IDENTITY, None)
    assert list(tmp_path.iterdir()) == []


def test_only_complete_checkpoints_count_and_the_oldest_go_last(tmp_path):
    with open_run(tmp_path, "train", IDENTITY, tmp_path) as run:
        for number in (5, 10, 15):
            run.save_checkpoint(number, write_one, keep=2)
        assert run.checkpoints() == [10, 15]
        assert run.latest_checkpoint() == 15
        (run.checkpoint(20) / "policy").mkdir(parents=True)  # killed before COMPLETE
        assert run.latest_checkpoint() == 15
        (run.checkpoint(15) / "weights").write_text("a")  # truncated
        assert run.latest_checkpoint() == run.resume_point() == 10


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(tmp_path):
    with open_run(tmp_path, "train", IDENTITY, tmp_path) as run:
        assert run.resume_point() is None
        for number in (5, 10):
            run.save_checkpoint(number, write_one, keep=2)
            (run.checkpoint(number) / "weights").write_text("a")
        with pytest.raises(RunError, match="all checkpoints are damaged"):
            run.resume_point()


def test_a_failed_checkpoint_leaves_the_ones_before(tmp_path):
    def fail(folder):
        write_one(folder)
        raise OSError("no space left on device")

    with open_run(tmp_path, "train", IDENTITY, tmp_path) as run:
        run.save_checkpoint(5, write_one, keep=1)
        with pytest.raises(OSError, match="no space"):
            run.save_checkpoint(10, fail, keep=1)
        assert run.checkpoints() == [5]
        assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == ["000005"]


def test_a_best_policy_is_whole_and_goes_when_it_is_not_among_those_to_keep(tmp_path):
    with open_run(tmp_path, "train", IDENTITY, tmp_path) as run:
        run.keep_bests({1})  # there is none yet
        for number in (2, 5, 9):
            run.save_best(number, write_one)
        run.best(7).mkdir()  # of another program
        (run.best(9) / "weights").write_text("a")  # truncated
        assert [n for n in range(10) if run.has_best(n)] == [2, 5]
        run.save_best(9, write_one)
        run.keep_bests({5, 9})
        assert sorted(p.name for p in (run.path / "best").iterdir()) == ["000005", "000009"]
        assert run.has_best(9) and run.checkpoints() == []


def test_metrics_are_rewound_to_the_checkpoint_and_a_cut_line_is_dropped(tmp_path):
    with open_run(tmp_path, "train", IDENTITY, tmp_path) as run:
        for number in (1, 2, 3):
            run.append_metrics({"iteration": number})
        with run.metrics_file.open("a") as file:
            file.write('{"iterat')
        run.rewind_metrics(2)
        assert [row["iteration"] for row in run.read_metrics()] == [1, 2]


def test_publishing_replaces_as_a_whole_and_shares_the_bytes(tmp_path):
    source, target = tmp_path / "work" / "policy", tmp_path / "checkpoints" / "final"
    source.mkdir(parents=True)
    (source / "a").write_text("new")
    target.mkdir(parents=True)
    (target / "old").write_text("old")
    publish(source, target)
    assert [p.name for p in target.iterdir()] == ["a"]
    assert (target / "a").stat().st_ino == (source / "a").stat().st_ino
    assert [p.name for p in target.parent.iterdir()] == ["final"]


def test_an_interrupted_directory_leaves_what_was_there(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "kept").write_text("")
    with pytest.raises(KeyboardInterrupt), atomic_directory(target) as folder:
        (folder / "half").write_text("")
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and (target / "kept").exists()


def test_the_manifest_says_where_a_run_comes_from(tmp_path):
    with open_run(tmp_path, "train", IDENTITY, tmp_path) as run:
        manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["identity"] == IDENTITY and {"code_revision", "torch", "python"} <= set(manifest["provenance"])


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with (
        pytest.raises(RunError, match=r"train-\w+: files cannot be locked .*No locks available.*SPO_WORK_DIR"),
        open_run(tmp_path, "train", IDENTITY, tmp_path),
    ):
        pass


def test_the_lock_is_taken_on_a_file_that_may_be_written(tmp_path, monkeypatch):
    """NFS gives an exclusive lock on no other."""
    opened = []
    monkeypatch.setattr("fcntl.flock", lambda file, how: opened.append(file.writable()))
    with open_run(tmp_path, "train", IDENTITY, tmp_path):
        pass
    check_run(tmp_path, "train", IDENTITY, None)
    assert opened == [True, True]


def test_a_checkpoint_without_its_list_of_files_counts_for_nothing_and_is_named(tmp_path, caplog):
    with open_run(tmp_path, "train", IDENTITY, tmp_path) as run:
        for number in (5, 10):
            run.save_checkpoint(number, write_one, keep=2)
        (run.checkpoint(10) / "COMPLETE").write_text('{"weig')
        assert run.latest_checkpoint() == 5 and run.has_best(10) is False
    assert caplog.messages == [f"{run.checkpoint(10)} is damaged (COMPLETE), so it counts for nothing"]


def test_what_earlier_stages_published_is_no_uncommitted_change_of_the_code(tmp_path):
    for name in ("dvc.lock", "metrics/prepare.json", "spo_core/tree.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    for name, changed in (("dvc.lock", False), ("metrics/prepare.json", False), ("spo_core/tree.py", True)):
        (tmp_path / name).write_text("2")
        assert provenance(tmp_path)["uncommitted_changes"] is changed, name
