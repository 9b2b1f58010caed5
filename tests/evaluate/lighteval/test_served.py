"""Evaluation through vLLM servers: how they are asked, that they end, and what the real one answers."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spo_core.config import VllmEngineParams
from spo_core.errors import EngineError
from spo_core.evaluate.lighteval import serving
from spo_core.evaluate.lighteval.details import read_details
from spo_core.evaluate.lighteval.endings import Endings
from spo_core.evaluate.lighteval.exchange import Servers
from spo_core.evaluate.lighteval.process import LOG
from spo_core.evaluate.lighteval.runner import DETAILS, SERVERS
from spo_core.evaluate.lighteval.serving import ask, checkpoint_stop_ids, served_dtype
from spo_core.evaluate.lighteval.serving import serving as served
from spo_core.evaluate.result import EvaluationError
from spo_core.policy.checkpoint import load_policy, stop_ids
from spo_core.policy.tokenizer import load_tokenizer
from spo_core.rollout.engine import Completion, Request
from spo_core.rollout.vllm import server as vllm_server
from tests.evaluate.lighteval.test_runner import LONG, PARAMS, SHORT, check_score, measure, save_random_policy
from tests.flows.conftest import needs_evaluation
from tests.rollout.vllm import fake_vllm as kinds
from tests.rollout.vllm.case import needs_vllm
from tests.rollout.vllm.test_replicas import members, until

FAKE = {"start_seconds": 20.0, "request_seconds": 20.0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_random_policy(tmp_path_factory.mktemp("policies") / "random")


@pytest.fixture
def fake(tmp_path, monkeypatch, checkpoint):
    """Opens fake servers; all that is left of them at the end is their logs."""
    monkeypatch.setenv("FAKE_VLLM", str(tmp_path))
    monkeypatch.setattr(vllm_server, "LAUNCHER", "tests.rollout.vllm.fake_vllm")
    monkeypatch.setattr(serving, "PAUSE_SECONDS", 0.05)
    started: list[int] = []
    spawn = vllm_server.VllmServer._spawn
    monkeypatch.setattr(
        vllm_server.VllmServer, "_spawn", lambda self: (spawn(self), started.append(self._process.pid))[0]
    )

    def make(servers: int | None = None, **options):
        engine = VllmEngineParams(type="vllm", servers=servers, **FAKE, **options)
        params = PARAMS.model_copy(update={"engine": engine, "batch_size": 4})
        return served(checkpoint, params, stop_ids=(2, 9), context_length=64, folder=tmp_path / "servers")

    yield make
    assert started
    until(lambda: not any(map(members, started)))


def request(number: int, first: int = 1, tree: str = "") -> Request:
    ids = np.asarray([first, 2, 3], np.int32)
    return Request(number, ids, max_tokens=4, seed=100 + number, tree=tree or str(number))


def answers(servers: Servers, requests: list[Request]) -> list[Completion]:
    return asyncio.run(ask(servers, requests, lambda: None))


def calls(folder: Path) -> list[dict]:
    rows = map(json.loads, (folder / "calls.jsonl").read_text().splitlines())
    return [row for row in rows if row["path"] == "/inference/v1/generate"]


def test_completions_are_those_of_the_requests_whatever_their_order_and_the_number_of_servers(fake, tmp_path):
    requests = [request(n, tree=f"question {n // 4}") for n in range(40)]
    counted: list[None] = []
    found = []
    for number in (None, 3):
        with fake(number) as servers:
            assert len(servers.sockets) == (number or 1) and (servers.stop_ids, servers.context_length) == ((2, 9), 64)
            done = asyncio.run(ask(servers, requests, lambda: counted.append(None)))
            assert [c.request_id for c in done] == list(range(40))
            found.append([c.token_ids.tolist() for c in done])
            found.append([c.token_ids.tolist() for c in answers(servers, requests[::-1])][::-1])
    assert found[0] == [[(100 + n + 7 * i) % 50 for i in range(4)] for n in range(40)]
    assert all(other == found[0] for other in found)
    assert len(counted) == 80
    sampling = {key: value for key, value in calls(tmp_path)[0]["body"]["sampling_params"].items() if key != "seed"}
    assert (sampling["temperature"], sampling["top_p"], sampling["stop_token_ids"]) == (1.0, 1.0, [2, 9])


def test_an_evaluation_may_leave_the_noise_to_the_servers(fake, tmp_path):
    with fake(2, seeded=False) as servers:
        assert not servers.seeded
        answers(servers, [request(n) for n in range(4)])
    assert {call["body"]["sampling_params"]["seed"] for call in calls(tmp_path)} == {None}
    rows = map(json.loads, (tmp_path / "calls.jsonl").read_text().splitlines())
    seeds = [row["body"]["args"][0] for row in rows if row["body"].get("method") == "seed_sampling"]
    assert len(set(seeds)) == 2


def test_the_questions_are_spread_and_each_stays_with_one_server(fake, tmp_path):
    with fake(2) as servers:
        answers(servers, [request(n, tree=f"question {n // 4}") for n in range(24)])
    pids = {}
    for call in calls(tmp_path):
        question = (call["body"]["sampling_params"]["seed"] - 100) // 4
        assert pids.setdefault(question, call["pid"]) == call["pid"]
    assert sorted(list(pids.values()).count(pid) for pid in set(pids.values())) == [3, 3]


def test_a_request_that_fails_is_sent_again_and_an_error_in_the_end(fake, tmp_path):
    with fake() as servers:
        (once,) = answers(servers, [request(1, kinds.FAILS_ONCE)])
        assert once.token_ids.tolist() == [(101 + 7 * i) % 50 for i in range(4)]
        with pytest.raises(EngineError, match="failed 3 times"):
            answers(servers, [request(2, kinds.FAILS), *(request(n) for n in range(3, 9))])
        with pytest.raises(EngineError, match="refused"):
            answers(servers, [request(9, kinds.REFUSED)])
        with pytest.raises(ValueError, match="max_tokens"):
            answers(servers, [replace(request(10), max_tokens=62)])
    sent = [call["body"]["sampling_params"]["seed"] for call in calls(tmp_path)]
    assert (sent.count(101), sent.count(102), sent.count(109)) == (2, 3, 1)


def test_no_server_is_given_more_than_its_slots(fake):
    with fake() as servers:
        narrow = replace(servers, slots=2)
        open_now, most = 0, 0
        generate = serving.VllmClient.generate

        async def counting(self, request, version):
            nonlocal open_now, most
            open_now += 1
            most = max(most, open_now)
            try:
                return await generate(self, request, version)
            finally:
                open_now -= 1

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(serving.VllmClient, "generate", counting)
            answers(narrow, [request(n) for n in range(20)])
    assert most == 2


def test_servers_end_with_the_block_whatever_ends_it(fake):
    for error in (RuntimeError("ours"), KeyboardInterrupt(), EvaluationError("lighteval failed")):
        with pytest.raises(type(error)) as raised, fake(2):
            raise error
        assert raised.value is error


def test_a_server_that_does_not_start_is_told_with_its_last_words(fake):
    with (
        pytest.raises(EngineError, match=r"did not start\.(.|\n)*an option that nobody knows"),
        fake(2, options={"fails": True}),
    ):
        raise AssertionError("it started")


def test_a_server_that_died_is_the_reason_of_a_failed_evaluation(fake):
    with pytest.raises(EngineError, match=r"vLLM server 0 died\.(.|\n)*too much"), fake() as servers:
        with pytest.raises(EngineError, match="failed 3 times"):
            answers(servers, [request(1, kinds.DIES)])
        raise EvaluationError("lighteval failed: spo_core.errors.EngineError: the vLLM server failed 3 times")


def test_stop_ids_are_those_of_the_loaded_policy(checkpoint, tmp_path):
    other = save_random_policy(tmp_path / "other")
    (other / "generation_config.json").unlink()
    for folder in (checkpoint, other):
        model, tokenizer = load_policy(folder)
        assert checkpoint_stop_ids(folder, load_tokenizer(folder)) == stop_ids(model, tokenizer)
    assert len(checkpoint_stop_ids(checkpoint, tokenizer)) == 2


@pytest.mark.parametrize(
    ("config", "dtype"),
    [({}, "float32"), ({"dtype": "bfloat16"}, "bfloat16"), ({"torch_dtype": "float16"}, "float16")],
)
def test_servers_have_the_dtype_of_the_checkpoint(tmp_path, config, dtype):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert served_dtype(tmp_path, VllmEngineParams(type="vllm")) == dtype
    assert served_dtype(tmp_path, VllmEngineParams(type="vllm", dtype="float16")) == "float16"


def test_completions_end_at_the_first_stop_token_or_string(tokenizer):
    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    eos = tokenizer.eos_token_id
    endings = Endings(tokenizer, (eos,), ("+7",))
    for text, rest in (("1+3=4", [eos]), ("1+3+7", [])):
        own = ids(text) + rest
        assert endings.until([*own, *ids("8+7"), eos]) == own and endings.ended(own)
    assert endings.until(ids("1+3")) == ids("1+3") and not endings.ended(ids("1+3"))


VLLM = PARAMS.model_copy(update={"engine": VllmEngineParams(type="vllm", cache_gib=0.25)})
TWO = PARAMS.model_copy(update={"engine": VllmEngineParams(type="vllm", cache_gib=0.25, servers=2)})


@pytest.fixture(scope="module")
def long(checkpoint, tmp_path_factory):
    """The score of the longer cell, its samples, its folder and the progress it told."""
    folder, progress = tmp_path_factory.mktemp("long"), []
    score = measure(checkpoint, LONG, folder, params=VLLM, progress=lambda *counts: progress.append(counts))
    return score, read_details(folder / DETAILS), folder, progress


class TestRealServer:
    pytestmark = [*needs_vllm, needs_evaluation]

    def test_end_to_end(self, long):
        score, samples, folder, progress = long
        assert sorted(path.name for path in folder.iterdir()) == [DETAILS, LOG, SERVERS]
        assert progress[-1] == (35, 35)
        check_score(score, samples, LONG)
        assert len({s.completion for s in samples}) > 20, "samples of a question are not distinct"

    @pytest.mark.exhaustive
    def test_samples_do_not_depend_on_the_number_of_servers(self, checkpoint, long, tmp_path):
        score, samples, *_ = long
        again = measure(checkpoint, LONG, tmp_path, params=TWO)
        assert replace(again, seconds=0.0) == replace(score, seconds=0.0)
        assert read_details(tmp_path / DETAILS) == samples

    @pytest.mark.exhaustive
    def test_a_shorter_cell_cuts_the_completions_of_a_longer_one(self, checkpoint, long, tmp_path):
        """It was asked for itself: it has other limits, and the same noise."""
        score = measure(checkpoint, SHORT, tmp_path, params=VLLM)
        cut = read_details(tmp_path / DETAILS)
        check_score(score, cut, SHORT)
        assert all(s.completion.startswith(c.completion) for s, c in zip(long[1], cut, strict=True))

    @pytest.mark.exhaustive
    def test_the_most_probable_completions_are_those_of_lighteval_s_own_backend(self, checkpoint, tmp_path):
        """A nucleus of one token leaves nothing to chance."""
        scores, details = {}, {}
        for params in (PARAMS, VLLM):
            name = params.engine.type
            params = params.model_copy(update={"top_p": 1e-6})
            scores[name] = measure(checkpoint, LONG, tmp_path / name, params=params)
            details[name] = read_details(tmp_path / name / DETAILS)
        assert details["vllm"] == details["transformers"]
        protocol = scores["vllm"].protocol
        versions = {name: text for name, text in protocol.versions.items() if name != "vllm"}
        assert replace(protocol, engine="transformers", versions=versions) == scores["transformers"].protocol
        assert protocol.engine == "vllm" and protocol.versions.keys() - versions.keys() == {"vllm"}
        assert scores["vllm"].lighteval_prompt_hash == scores["transformers"].lighteval_prompt_hash
