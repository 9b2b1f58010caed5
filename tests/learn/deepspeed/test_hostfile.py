"""Ranks on machines of a hostfile, by DeepSpeed's launcher. Real but for the network's shell: a stand-in for pdsh runs
what it is told on this machine, as sshd would, detached and with an environment of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from spo_core.config import DeepSpeedBackendParams, LearnParams
from spo_core.errors import ConfigError
from spo_core.learn.deepspeed.hostfile import addresses, read_hostfile
from spo_core.learn.deepspeed.ranks import Ranks
from spo_core.learn.deepspeed.trainer import PREFIX, DeepSpeedTrainer
from spo_core.policy.checkpoint import load_policy
from tests.conftest import ROOT
from tests.learn.deepspeed.test_training import SMALL, flow_command, params_of, saved, set_weights, weights
from tests.learn.test_trainer import make_trainer, relative, sample
from tests.system.test_processes import gone, until

PDSH = """#!{python}
import json, os, subprocess, sys
arguments = sys.argv[1:]
hosts, command = arguments[arguments.index("-w") + 1].split(","), arguments[arguments.index("-w") + 2 :]
assert os.environ["PDSH_RCMD_TYPE"] == "ssh"
env = {{key: os.environ[key] for key in ("HOME", "PATH") if key in os.environ}}  # sshd hands on no other
started = [
    subprocess.Popen(["sh", "-c", " ".join(command).replace("%n", str(n))], env=env, start_new_session=True, cwd="/")
    for n in range(len(hosts))
]
with open("{told}", "w") as file:
    json.dump({{"hosts": hosts, "pids": [p.pid for p in started]}}, file)
sys.exit(max(abs(p.wait()) for p in started))
"""
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None or sys.platform != "linux", reason="needs the extra deepspeed, Linux"
)


@pytest.fixture
def told(tmp_path, monkeypatch):
    """The file in which the stand-in says what it was told to run where; its folder comes first on PATH."""
    place, told = tmp_path / "bin", tmp_path / "told.json"
    place.mkdir()
    (place / "pdsh").write_text(PDSH.format(python=sys.executable, told=told))
    (place / "pdsh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return told


@pytest.fixture
def hostfile(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# two machines\nlocalhost slots=1\n\n127.0.0.1  slots=4  # one of its slots is used\n")
    return path


def tree_of(pids: list[int]) -> list[int]:
    return [p.pid for pid in pids for p in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]


def far(params: LearnParams, hostfile: Path) -> LearnParams:
    backend = params.backend.model_copy(update={"hostfile": str(hostfile)})
    return params.model_copy(update={"backend": backend})


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_machines_train_as_one_and_end_with_the_flow(policy, folder, told, hostfile):
    """One rank on each of two machines: the weights of two ranks here, bit by bit, and of one device, to rounding;
    closing the trainer ends them, though nothing but the socket ties them to it. What is exchanged lies in the run's
    directory, which may have a long name; what a killed flow left there goes."""
    params = params_of({"zero_stage": 2})
    where = folder / "policy"

    def trainer(params, name):
        log = folder / name / "log"
        left = folder / name / f"{PREFIX}left"
        left.mkdir(parents=True)
        (left / "weights-1.safetensors").touch()
        return DeepSpeedTrainer(
            load_policy(where)[0],
            params,
            policy=where,
            reference=None,
            context_length=64,
            temperature=1.0,
            seed=0,
            log=log,
        )

    one = make_trainer(policy, **SMALL)
    one.train_iteration(sample(seed=1), iteration=1)
    long = "here" + 108 * "-"  # more than the path of a socket may have
    here = trainer(params, long)
    here.train_iteration(sample(seed=1), iteration=1)
    expected, state = weights(here), saved(here, folder / "checkpoint")
    (exchange,) = (folder / long).glob(f"{PREFIX}*")
    local = Path(json.loads((exchange / "settings.json").read_text())["socket"]).parent
    assert (exchange / "trees.parquet").is_file() and {p.name for p in local.iterdir()} == {"socket", "store"}
    here.close()
    assert not list((folder / long).glob(f"{PREFIX}*")) and not local.exists()

    there = trainer(far(params, hostfile), "there")
    try:
        (exchange,) = (folder / "there").glob(f"{PREFIX}*")
        settings = json.loads((exchange / "settings.json").read_text())
        assert stat.S_IMODE((exchange / "settings.json").stat().st_mode) == 0o600
        assert stat.S_IMODE(exchange.stat().st_mode) == 0o700 and "socket" not in settings and "store" not in settings
        assert settings["address"][0] == "127.0.0.1", "all of these machines are reached through the loopback device"
        started = json.loads(told.read_text())
        assert started["hosts"] == ["localhost", "127.0.0.1"]
        pids = tree_of(started["pids"])
        ranks = {}
        for pid in pids:
            env = psutil.Process(pid).environ()
            if "RANK" in env:
                ranks[env["RANK"]] = env["LOCAL_RANK"], env["CROSS_RANK"]
                assert not {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"} & env.keys()
        assert ranks == {"0": ("0", "0"), "1": ("0", "1")}

        metrics = there.train_iteration(sample(seed=1), iteration=1)
        assert metrics["skipped"] == 0
        assert all(map(torch.equal, expected, weights(there))) and relative(weights(one), weights(there)) <= 1e-6
        there.train_iteration(sample(seed=2), iteration=2)
        set_weights(there.model, expected)
        there.load(folder / "checkpoint")
        again = saved(there, folder / "again")
        assert again.keys() == state.keys() and all(torch.equal(again[key], state[key]) for key in state)
        assert there.step == one.step
    finally:
        there.close()
    until(lambda: all(map(gone, pids)))
    assert not list((folder / "there").glob(f"{PREFIX}*")), "the token is gone with the trainer"


@needs_deepspeed
@pytest.mark.exhaustive
@pytest.mark.slow
def test_ranks_on_other_machines_die_with_a_killed_flow(policy, folder, told, hostfile):
    with subprocess.Popen(
        flow_command(far(params_of({}), hostfile)),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as flow:
        try:
            assert b"ready" in flow.stdout.readline()
            pids = tree_of(json.loads(told.read_text())["pids"])
            assert len(pids) >= 4, "what the launcher starts on either machine, and its rank"
        finally:
            flow.send_signal(signal.SIGKILL)
    until(lambda: all(map(gone, pids)))


def test_whoever_has_no_token_is_sent_away(tmp_path, told, hostfile, caplog, monkeypatch):
    """Strangers that hang up, say nothing, something else, or too much hinder nobody; they are never told a command."""
    monkeypatch.setattr("spo_core.learn.deepspeed.ranks.launch_on_hosts", lambda *_: ["sleep", "600"])
    backend = DeepSpeedBackendParams(type="deepspeed", ranks=2, hostfile=str(hostfile))
    (tmp_path / "exchange").mkdir()
    ranks = Ranks({}, backend, folder=tmp_path / "exchange", log=tmp_path / "log")
    try:
        settings = json.loads((tmp_path / "exchange" / "settings.json").read_text())
        address = tuple(settings["address"])
        with socket.create_connection(address) as reset:
            reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        ranks._messages()
        silent, wrong, long = (socket.create_connection(address) for _ in range(3))
        wrong.sendall(b"0" * 64 + b"\n")
        long.sendall(b"x" * 100_000)
        began = time.monotonic()
        while len(ranks._strangers) != 1 or time.monotonic() - began < 0.5:
            ranks._messages()
            assert time.monotonic() - began < 60
        assert wrong.recv(1) == b"" and not ranks._buffers
        ours = socket.create_connection(address)
        ours.sendall(settings["token"].encode() + b"\n")
        while not ranks._buffers:
            ranks._messages()
        assert [s.getpeername() for s in ranks._buffers] == [ours.getsockname()]
        assert caplog.text.count("without the ranks' token") == 3
    finally:
        ranks.close()
        for one in (silent, wrong, long, ours):
            one.close()


def test_a_hostfile_is_read_as_deepspeed_reads_it_and_refused_before_anything_starts(tmp_path, monkeypatch):
    path = tmp_path / "hosts"
    path.write_text("a slots=2\nb slots=4 # gpus\n\n# c slots=9\n")
    assert read_hostfile(path, 6) == {"a": 2, "b": 4} and read_hostfile(path, 3) == {"a": 2, "b": 1}
    assert read_hostfile(path, 2) == {"a": 2}
    with pytest.raises(ConfigError, match=r"ranks 7 exceeds the 6 slots of .*hosts"):
        read_hostfile(path, 7)
    for text, why in (("a slots=two", "line 1: not of the form"), ("a slots=1\na slots=1", "line 2: this machine is")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=why):
            read_hostfile(path, 1)
    with pytest.raises(ConfigError, match="nowhere: no such file"):
        read_hostfile(tmp_path / "nowhere", 1)
    with pytest.raises(ConfigError, match=r"cannot resolve no\.such\.machine\.invalid"):
        addresses(["no.such.machine.invalid"])
    assert addresses(["localhost"]) == ("127.0.0.1", "127.0.0.1")


def test_without_pdsh_it_says_so(tmp_path, hostfile, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    backend = DeepSpeedBackendParams(type="deepspeed", ranks=2, hostfile=str(hostfile))
    with pytest.raises(ConfigError, match="needs pdsh"):
        Ranks({}, backend, folder=tmp_path, log=tmp_path / "log")
