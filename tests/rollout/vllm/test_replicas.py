"""A group of servers without vLLM: where requests go, what is tried again, and that no process is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest

from spo_core.config import VllmEngineParams
from spo_core.errors import EngineError
from spo_core.rollout.engine import Request
from spo_core.rollout.vllm import client as vllm_client
from spo_core.rollout.vllm import replicas as vllm_replicas
from spo_core.rollout.vllm import server as vllm_server
from spo_core.rollout.vllm.client import read_completion
from spo_core.rollout.vllm.group import VllmGroup
from spo_core.rollout.vllm.server import LAST_LINES, environment, flags, gpus, last_words, visible_gpus
from spo_core.rollout.vllm.settings import VllmSettings
from tests.conftest import ROOT
from tests.rollout.vllm import fake_vllm as kinds
from tests.rollout.vllm.case import drain, tokens

OPEN = """
import sys, time
from pathlib import Path
from spo_core.rollout.vllm import server as vllm_server
from tests.rollout.vllm.test_replicas import open_group, processes
vllm_server.LAUNCHER = "tests.rollout.vllm.fake_vllm"
group = open_group(Path(sys.argv[1]))
print(*processes(group), *[server.client.socket.parent for server in group._replicas.servers], flush=True)
time.sleep(60)
"""


def open_group(folder: Path, arguments=(), noise: int | None = None, **params) -> VllmGroup:
    settings = VllmSettings(
        arguments={"model": "none", "max_num_seqs": 8} | dict(arguments),
        stop_ids=(2,),
        temperature=0.6,
        top_p=0.9,
        context_length=64,
        noise=noise,
    )
    chosen = {"type": "vllm", "servers": 2, "start_seconds": 20.0, "request_seconds": 20.0} | params
    return VllmGroup(settings, VllmEngineParams(**chosen), lambda target: (target / "w").touch(), folder / "engine")


def processes(group: VllmGroup) -> list[int]:
    return [server._process.pid for server in group._replicas.servers]


def members(group_id: int) -> list[int]:
    """Processes of a group; zombies that a container's init has not collected do not count."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group_id and fields[0] not in "ZX":
            found.append(int(stat.parent.name))
    return found


def ports(pids: list[int]) -> list[int]:
    """TCP ports that one of these processes listens on."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                inodes.add(descriptor.readlink().name.removeprefix("socket:[").rstrip("]"))
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return [int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and row[9] in inodes]


def assert_private(group: VllmGroup) -> None:
    """Nobody but the owner reaches a server: no path of its, whatever a request may be."""
    for server, pid in zip(group._replicas.servers, processes(group), strict=True):
        path = server.client.socket
        assert (
            path.is_socket()
            and path.parent.stat().st_mode & 0o777 == 0o700
            and path.parent.stat().st_uid == os.getuid()
        )
        for port in ports(members(pid)):  # of torch.distributed, which a server's own processes meet at
            with pytest.raises(httpx.HTTPError):
                httpx.get(f"http://127.0.0.1:{port}/health", timeout=1.0, trust_env=False)
        if os.getuid() == 0:
            assert {as_nobody(each) for each in path.parent.iterdir()} == {"PermissionError"}


def as_nobody(path: Path) -> str:
    """What becomes of another user's attempt to connect to a socket."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setuid(65534)
            socket.socket(socket.AF_UNIX).connect(str(path))
            os.write(writing, b"let in")
        except BaseException as error:
            os.write(writing, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as words:
        return words.read()


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Opens groups of fake servers and, at the end, closes them and looks for what is left of them."""
    monkeypatch.setenv("FAKE_VLLM", str(tmp_path))
    monkeypatch.setattr(vllm_server, "LAUNCHER", "tests.rollout.vllm.fake_vllm")
    monkeypatch.setattr(vllm_replicas, "PAUSE_SECONDS", 0.05)
    groups = []

    def make(version: int | None = 1, **options) -> VllmGroup:
        groups.append(open_group(tmp_path, **options))
        if version is not None:
            groups[-1].policy_changed(version)
        return groups[-1]

    yield make
    for group in groups:
        pids = processes(group)
        start = time.monotonic()
        group.close()
        assert time.monotonic() - start < 3
        until(lambda pids=pids: not any(map(members, pids)))
        assert not list(group.folder.glob("*policy-*"))


def request(number, first=1, **options) -> Request:
    return Request(number, np.asarray([first, 2, 3], np.int32), **({"max_tokens": 4, "seed": 100 + number} | options))


def calls(tmp_path, path="/inference/v1/generate"):
    lines = map(json.loads, (tmp_path / "calls.jsonl").read_text().splitlines())
    return [call for call in lines if call["path"].startswith(path)]


def test_completions_are_those_of_the_requests(opened, tmp_path):
    group = opened(version=7)
    done = drain(group, [request(i) for i in range(50)])
    assert tokens(done) == {i: [(100 + i + 7 * k) % 50 for k in range(4)] for i in range(50)}
    assert {c.cached_tokens for c in done.values()} == {3} and not any(c.stopped for c in done.values())
    bodies = [call["body"] for call in calls(tmp_path)]
    assert {body["cache_salt"] for body in bodies} == {"policy 7"}
    assert {body["sampling_params"]["temperature"] for body in bodies} == {0.6}
    scaled = [c["body"] for c in calls(tmp_path, "/collective_rpc") if c["body"]["method"] == "scale_logprobs"]
    assert scaled == [{"method": "scale_logprobs", "args": ["0.6"]}] * 2


def test_a_tree_stays_on_one_server_until_the_policy_changes(opened, tmp_path):
    group = opened()
    drain(group, [request(i, kinds.SLOW, tree=f"t{i}") for i in range(4)])
    drain(group, [request(10 * i + k, tree=f"t{k}") for k in range(4) for i in range(1, 11)])
    homes = {f"t{i}": set() for i in range(4)}
    for call in calls(tmp_path):
        homes[f"t{(call['body']['sampling_params']['seed'] - 100) % 10 % 4}"].add(call["pid"])
    assert sorted(next(iter(pids)) for pids in homes.values()) == sorted(processes(group) * 2)
    assert {len(pids) for pids in homes.values()} == {1}
    group.policy_changed(2)
    assert not group._replicas._homes


def test_a_failed_request_is_sent_again_with_its_seed(opened, tmp_path):
    group = opened()
    done = drain(group, [request(0, kinds.FAILS_ONCE), request(1)])
    assert set(done) == {0, 1} and group.restarts == 0
    first, second = [c["body"] for c in calls(tmp_path) if c["body"]["token_ids"][0] == kinds.FAILS_ONCE]
    assert first == second and first["sampling_params"]["seed"] == 100


@pytest.mark.parametrize(
    ("kind", "attempts", "words"),
    [
        (kinds.REFUSED, 1, "refused .*400.*such a request"),
        (kinds.FAILS, 3, "failed 3 times.*500.*a bad day"),
        (kinds.HANGS, 3, "failed 3 times.*no answer in 0.5 seconds"),
        (kinds.ANSWERS_BADLY, 3, "failed 3 times.*log-probs are of other tokens"),
    ],
)
def test_a_request_that_always_fails_ends_the_run(opened, tmp_path, kind, attempts, words):
    group = opened(request_seconds=0.5)
    with pytest.raises(EngineError, match=words):
        drain(group, [request(0, kind)])
    assert len(calls(tmp_path)) == attempts
    with pytest.raises(EngineError, match=words):
        group.step()


def test_a_server_that_dies_is_started_again_with_the_present_weights(opened, tmp_path):
    group = opened(version=3)
    requests = [request(i, kinds.DIES_ONCE if i == 5 else kinds.SLOW) for i in range(20)]
    done = drain(group, requests)
    assert tokens(done) == {i: [(100 + i + 7 * k) % 50 for k in range(4)] for i in range(20)}
    assert group.restarts == 1
    log = "".join(p.read_text() for p in group.folder.glob("server-*.log"))
    assert f"RuntimeError: {kinds.DIES_ONCE} of 105 was too much" in log and log.count("=== vLLM server") == 3
    for pid in processes(group):
        mine = [c for c in calls(tmp_path, "/") if c["pid"] == pid]
        assert [c["body"]["method"] for c in mine[:2]] == ["scale_logprobs", "load_policy"]
        assert mine[1]["body"]["kwargs"] == {"weights_path": str(group.folder / "policy-3")}
        assert mine[2]["path"] == "/reset_prefix_cache"


def test_the_second_death_between_two_policies_ends_the_run(opened):
    group = opened()
    drain(group, [request(0, kinds.DIES_ONCE)])
    group.policy_changed(2)
    drain(group, [request(1, kinds.DIES_ONCE)])
    assert group.restarts == 2
    with pytest.raises(EngineError, match=rf"(?s)died after a restart.*server-\d.log.*{kinds.DIES} of 102 was too"):
        drain(group, [request(2, kinds.DIES)])


def test_a_server_that_answers_nothing_is_started_again(opened, monkeypatch):
    monkeypatch.setattr(vllm_replicas, "WATCH_SECONDS", 0.2)
    monkeypatch.setattr(vllm_client, "HEALTH_SECONDS", 0.5)
    group = opened(servers=1)
    pid = processes(group)[0]
    os.kill(pid, signal.SIGSTOP)
    threads = [path / "stat" for path in Path(f"/proc/{pid}/task").iterdir()]
    until(lambda: {stat.read_text().rpartition(")")[2].split()[0] for stat in threads} == {"T"})
    assert set(drain(group, [request(0)])) == {0}
    assert group.restarts == 1


def test_a_server_that_died_asleep_is_started_again(opened):
    group = opened()
    group.sleep()
    os.killpg(processes(group)[0], signal.SIGKILL)
    group.policy_changed(2)
    assert group.restarts == 1 and set(drain(group, [request(0), request(1)])) == {0, 1}


def test_nothing_is_served_before_a_policy_or_asleep(opened, tmp_path):
    group = opened(version=None)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="policy_changed comes first"):
            group.submit([request(0)])
        group.policy_changed(1)
        assert set(drain(group, [request(0)])) == {0}
        group.sleep()
    group.policy_changed(2)
    assert [p.name for p in group.folder.glob("policy-*")] == ["policy-2"]
    wakes = [c["path"] for c in calls(tmp_path, "/") if c["pid"] == processes(group)[0] and "tags" in c["path"]]
    assert wakes == ["/wake_up?tags=weights", "/wake_up?tags=kv_cache"] * 2


def test_unseeded_requests_have_noise_of_their_servers_own(opened, tmp_path):
    """No two streams begin alike: of two servers, two policies, two starts."""
    group = opened(noise=7)
    drain(group, [request(0, kinds.DIES_ONCE)])  # started again
    assert group.restarts == 1
    group.sleep()
    group.policy_changed(2)
    drain(group, [request(1)])
    assert {call["body"]["sampling_params"]["seed"] for call in calls(tmp_path)} == {None}
    rpcs = [c for c in calls(tmp_path, "/collective_rpc") if c["body"]["method"] != "scale_logprobs"]
    seeds = [c["body"]["args"][0] for c in rpcs if c["body"]["method"] == "seed_sampling"]
    assert len(seeds) == len(set(seeds)) == 2 * 3 + 2 and all(0 <= int(seed) < 2**63 for seed in seeds)
    for pid in {c["pid"] for c in rpcs}:
        assert [c["body"]["method"] for c in rpcs if c["pid"] == pid][-2:] == ["load_policy", "seed_sampling"]


def test_servers_need_not_sleep(opened, tmp_path):
    group = opened(sleep=False)
    group.sleep()
    assert group.version is None and not calls(tmp_path, "/sleep")


def test_the_policy_may_not_change_nor_sleep_under_a_request(opened):
    group = opened()
    group.submit([request(0, kinds.HANGS)])
    for call in (lambda: group.policy_changed(2), group.sleep):
        with pytest.raises(RuntimeError, match="being decoded"):
            call()


def test_no_request_may_exceed_the_context(opened):
    with pytest.raises(ValueError, match=r"within 1\.\.61"):
        opened().submit([request(0, max_tokens=62)])


def test_a_closed_group_does_nothing(opened):
    group = opened()
    group.submit([request(0, kinds.HANGS)])
    group.close()
    group.close()
    assert not group.busy and group.step() == []
    with pytest.raises(RuntimeError, match="closed"):
        group.policy_changed(2)


@pytest.mark.parametrize(
    ("option", "words"),
    [("fails", "did not start.*ValueError: an option that nobody knows"), ("hangs", "did not start in 2 seconds")],
)
def test_a_server_that_does_not_start(opened, monkeypatch, option, words):
    started = []
    run = vllm_server.VllmServer._run
    monkeypatch.setattr(vllm_server.VllmServer, "_run", lambda *a: started.append(run(*a)) or started[-1])
    with pytest.raises(EngineError, match=f"(?s){words}"):
        opened(arguments={option: True}, start_seconds=2.0 if option == "hangs" else 20.0)
    assert len(started) == 2
    until(lambda: not any(members(process.pid) for process in started))


@pytest.mark.slow
def test_the_servers_die_with_the_flow(tmp_path):
    env = os.environ | {"PYTHONPATH": str(ROOT), "FAKE_VLLM": str(tmp_path)}
    command = [sys.executable, "-c", OPEN, str(tmp_path)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as flow:
        try:
            words = flow.stdout.readline().split()
            pids, folders = [int(word) for word in words[:2]], [Path(word) for word in words[2:]]
            assert all(folder.is_dir() for folder in folders)
            assert [len(members(pid)) for pid in pids] == [2, 2]
        finally:
            flow.kill()
    until(lambda: not any(map(members, pids)))
    assert not any(folder.exists() for folder in folders)


def test_only_the_owner_reaches_a_server(opened, tmp_path):
    group = opened()
    assert_private(group)
    assert ports([pid for group_id in processes(group) for pid in members(group_id)]) == []
    folders = [server.client.socket.parent for server in group._replicas.servers]
    drain(group, [request(0, kinds.DIES_ONCE)])  # started again, at the same place
    assert_private(group)
    assert group.restarts == 1 and folders == [server.client.socket.parent for server in group._replicas.servers]
    group.close()
    assert not any(folder.exists() for folder in folders)


def test_no_socket_can_be_made_in_a_folder_with_a_long_name(opened, tmp_path, monkeypatch):
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with pytest.raises(
        EngineError, match=r"server \d: no socket at .*AF_UNIX path too long.*set TMPDIR to a short folder"
    ):
        opened()
    assert not list(long.iterdir())


def test_flags():
    arguments = {"model": "/a b", "enforce_eager": True, "enable_chunked_prefill": False, "seed": 0, "x": None}
    assert flags(arguments) == ["--model=/a b", "--enforce-eager", "--no-enable-chunked-prefill", "--seed=0"]


def test_gpus_of_a_server():
    params = VllmEngineParams(type="vllm", servers=3, tensor_parallel=2, first_gpu=1)
    assert [gpus(i, params, list("0123456")) for i in range(3)] == ["1,2", "3,4", "5,6"]
    assert gpus(0, params, ["4", "GPU-a", "GPU-b"]) == "GPU-a,GPU-b"
    with pytest.raises(EngineError, match="need 7 GPUs, and 6 are visible"):
        gpus(2, params, list("012345"))
    slices = ["MIG-a", "MIG-b", "MIG-c"]
    assert gpus(2, params.model_copy(update={"tensor_parallel": 1, "first_gpu": 0}), slices) == "MIG-c"
    with pytest.raises(EngineError, match="tensor_parallel 2 needs whole GPUs"):
        gpus(0, params, slices)


UUID = "8932f937-d72c-4106-c12f-20bd9faed9f6"


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("0,1", ["0", "1"]),
        (" 3 , 1", ["3", "1"]),
        (f"GPU-{UUID},MIG-{UUID},MIG-GPU-{UUID}/3/0", [f"GPU-{UUID}", f"MIG-{UUID}", f"MIG-GPU-{UUID}/3/0"]),
        ("GPU-8932f937", ["GPU-8932f937"]),
        ("1,-1,0", ["1"]),
        ("-1", []),
        ("NoDevFiles", []),
        ("", []),
    ],
)
def test_visible_gpus_are_what_cuda_makes_of_the_variable(visible, names):
    assert visible_gpus(visible) == names


def test_environment_of_a_server(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    params = VllmEngineParams(type="vllm", servers=1000)
    base = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "RANK": "1", "VLLM_LOGGING_LEVEL": "DEBUG", "PYTHONPATH": "/x"}
    made = environment(0, params, base)
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in made and "RANK" not in made
    assert made["VLLM_LOGGING_LEVEL"] == "DEBUG" and made["VLLM_SERVER_DEV_MODE"] == "1"
    assert made["OMP_NUM_THREADS"] == "1" and made["PYTHONPATH"] == f"{ROOT}:/x"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)  # as CUDA counts MIG slices
    for index, visible in enumerate(["6,7", f"GPU-{UUID}, 7", f"MIG-{UUID},MIG-b"]):
        made = environment(index % 2, params, base | {"CUDA_VISIBLE_DEVICES": visible})
        assert made["CUDA_VISIBLE_DEVICES"] == visible.split(",")[index % 2].strip()
    assert environment(0, params, base)["CUDA_VISIBLE_DEVICES"] == "0"
    with pytest.raises(EngineError, match="1000 GPUs, and 1 are visible"):
        environment(1, params, base)


def test_last_words_begin_with_the_cause():
    log = [
        "(MainProcess pid=1) WARNING 11-22 23:19:10 [base.py:380] ValueError: no tokenizer",
        "(EngineCore pid=2) ERROR 11-22 23:19:26 [core.py:1512] FileNotFoundError: no weights here",
        *[f"line {i}" for i in range(20)],
        "RuntimeError: see above",
        "",
    ]
    words = last_words("\n".join(log))
    assert words[0] == "FileNotFoundError: no weights here" and words[-1] == "RuntimeError: see above"
    assert len(words) == LAST_LINES + 1
    assert last_words("one\ntwo\n") == ["one", "two"] and last_words("") == []


def answer(**changes):
    entries = [{"token_id": t, "logprob": -0.25} for t in (5, 6)]
    choice = {"token_ids": [5, 6], "finish_reason": "stop", "logprobs": {"content": entries}}
    return {"choices": [choice | changes], "usage": {"prompt_tokens": 3, "prompt_tokens_details": None}}


def test_reading_a_completion():
    done = read_completion(request(4), answer())
    assert (done.request_id, done.stopped, done.cached_tokens) == (4, True, 0)
    assert done.token_ids.tolist() == [5, 6] and done.logprobs.tolist() == [-0.25, -0.25]


@pytest.mark.parametrize(
    "changes",
    [
        {"finish_reason": "abort"},
        {"logprobs": None},
        {"logprobs": {"content": [{"token_id": 5, "logprob": -1.0}]}},
        {"logprobs": {"content": [{"token_id": t, "logprob": -9999.0} for t in (5, 6)]}},
        {"token_ids": [], "logprobs": {"content": []}},
        {"token_ids": [5] * 9, "logprobs": {"content": [{"token_id": 5, "logprob": -1.0}] * 9}},
    ],
)
def test_a_completion_that_does_not_fit_is_refused(changes):
    with pytest.raises((ValueError, TypeError, EngineError)):
        read_completion(request(4), answer(**changes))


def test_a_completion_of_another_prompt_is_refused():
    with pytest.raises(ValueError, match="not of this request"):
        read_completion(Request(4, np.asarray([1], np.int32), 4, 0), answer())
