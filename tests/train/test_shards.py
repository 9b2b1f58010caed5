"""Questions in shards: whoever samples them, and however they are divided, training sees the same trees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from spo_core.config import Params, load_params
from spo_core.errors import ConfigError, EngineError, RunError
from spo_core.paths import Paths
from spo_core.train.identity import training_identity
from spo_core.train.opening import open_session
from spo_core.train.shards import QuestionShard, ShardDone, close_worker, divide, sample_shard
from spo_core.train.steps import credit_step, rollout_step, train_step
from spo_core.tree import RolloutTree, read_trees
from tests.conftest import ROOT
from tests.invariants.test_training_runs import SMALL, prepared, same_bits

pytestmark = pytest.mark.slow

PRESETS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "spo-tree": (None, ()),
    "spo-chain, adaptive": (
        "spo-chain",
        (
            "rollout.branch_factors=[3]",
            "credit.value={type: adaptive_monte_carlo, min_rollouts: 2, max_rollouts: 4, tolerance: 0.2, prompt: cut}",
        ),
    ),
}


@pytest.fixture
def project(tmp_path, policy, tokenizer, monkeypatch):
    yield prepared(tmp_path, policy, tokenizer, monkeypatch)
    close_worker()


def small(*overrides: str, preset: str | None = None, shards: int = 0) -> Params:
    """Sampled in shards if a number of them is given."""
    divided = (f"run.task_runner={{type: dask, workers: {shards}}}",) if shards else ()
    return load_params(ROOT, preset, (*SMALL, "run.iterations=2", *divided, *overrides))


def here(shards: Sequence[QuestionShard]) -> list[ShardDone]:
    """As if this process were the worker of all shards."""
    return [sample_shard(shard) for shard in shards]


def train(
    params: Params, paths: Paths, map_shards: Callable | None = None
) -> tuple[dict[str, torch.Tensor], list[dict], list[RolloutTree]]:
    """Weights, rows of metrics but timing, and all trees."""
    trees = []
    with open_session(params, paths, map_shards=map_shards) as session:
        while not session.finished:
            number = session.iteration + 1
            rollout_step(session, number)
            credit_step(session, number)
            train_step(session, number)
            trees += read_trees(session.run.iteration(number) / "trees.parquet")
        rows = session.run.read_metrics()
        weights = {k: v.clone() for k, v in session.model.state_dict().items()}
        path = session.run.path
    assert not (path / "cluster").exists(), "what shards exchange is gone with the session"
    return weights, [{k: v for k, v in r.items() if not k.startswith("timing/")} for r in rows], trees


def furthest(ours: Sequence[RolloutTree], theirs: Sequence[RolloutTree]) -> float:
    """Largest difference of log-probs; everything else must be equal."""
    gaps = [0.0]
    for a, b in zip(ours, theirs, strict=True):
        assert (a.question_id, a.policy_version, a.iteration) == (b.question_id, b.policy_version, b.iteration)
        for one, other in zip(a.nodes, b.nodes, strict=True):
            assert np.array_equal(one.token_ids, other.token_ids)
            nothing = np.zeros(0, np.float32)
            assert repr(replace(one, logprobs=nothing)) == repr(replace(other, logprobs=nothing))
            gaps.append(float(np.abs(one.logprobs - other.logprobs).max(initial=0.0)))
    return max(gaps)


@pytest.mark.parametrize("case", PRESETS)
def test_training_on_parts_is_training(project, tmp_path, monkeypatch, case):
    """One shard: the same bits. Three: the same tokens, rewards and trees; log-probs and weights to rounding. Twice in
    the same shards: the same bits."""
    preset, options = PRESETS[case]
    runs = {}
    for name, shards in (("whole", 0), ("one", 1), ("three", 3), ("again", 3)):
        monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / name))
        runs[name] = train(small(*options, preset=preset, shards=shards), project, here if shards else None)
        close_worker()
    whole, one, three, again = runs.values()
    assert same_bits(whole[0], one[0]) and whole[1] == one[1] and furthest(whole[2], one[2]) == 0
    assert same_bits(three[0], again[0]) and three[1] == again[1] and furthest(three[2], again[2]) == 0
    assert furthest(whole[2], three[2]) < 1e-4
    print("largest difference of log-probs:", furthest(whole[2], three[2]))
    assert all(torch.allclose(whole[0][k], three[0][k], atol=1e-4) for k in whole[0])
    assert [r["rollout/reward"] for r in whole[1]] == pytest.approx([r["rollout/reward"] for r in three[1]])
    assert whole[1][-1]["eval/validation_accuracy"] == three[1][-1]["eval/validation_accuracy"]


def test_a_worker_rounds_the_weights_as_the_flow_does(project, tmp_path, monkeypatch):
    """In bfloat16 it is handed float32 weights and samples with those that the flow would have sampled with."""
    runs = []
    for shards in (0, 1):
        monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / str(shards)))
        runs.append(train(small("learn.dtype=bfloat16", shards=shards), project, here if shards else None))
        close_worker()
    whole, one = runs
    assert same_bits(whole[0], one[0]) and whole[1] == one[1] and furthest(whole[2], one[2]) == 0


def test_equal_questions_stay_together_and_parts_are_even():
    ids = [f"q{n}" for n in range(10)] + ["q0", "q9"]
    shards = divide(ids, 4)
    assert sorted(i for shard in shards for i in shard) == list(range(12)) and all(
        shard == sorted(shard) for shard in shards
    )
    assert 10 in shards[0] and 11 in shards[3] and 9 in shards[3]
    assert [len({ids[i] for i in shard}) for shard in shards] == [2, 3, 2, 3]
    assert divide(ids, 1) == [list(range(12))] and len(divide(ids, 99)) == 10


def test_a_worker_refuses_what_is_not_the_flows(project, tmp_path, monkeypatch):
    """Other weights than were written, other code, a folder that it does not see; and a failure there ends the step."""
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "work"))

    def as_it_is(shard: QuestionShard) -> QuestionShard:
        return shard

    def damaged(shard: QuestionShard) -> QuestionShard:
        weights = Path(shard.worker).with_name(shard.weights)
        weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
        return shard

    def unseen(shard: QuestionShard) -> QuestionShard:
        return replace(shard, worker="/nowhere/worker.json")

    def elsewhere(shards: Sequence[QuestionShard]) -> list[ShardDone]:
        return here([change(shard) for shard in shards])

    with open_session(small(shards=2), project, map_shards=elsewhere) as session:
        change = damaged
        with pytest.raises(RunError, match="not the weights that the flow wrote"):
            rollout_step(session, 1)
        assert not (session.run.iteration(1) / "trees.parquet").exists()
    close_worker()
    with open_session(small(shards=2), project, map_shards=elsewhere) as session:
        change = unseen
        with pytest.raises(RunError, match=r"/nowhere/worker\.json: not there on .*working directory"):
            rollout_step(session, 1)
        change = as_it_is
        with monkeypatch.context() as patch:
            patch.setattr("spo_core.train.shards.code_digest", lambda *names: "other")
            with pytest.raises(RunError, match="other code than the flow"):
                rollout_step(session, 1)
        rollout_step(session, 1)
        assert len(read_trees(session.run.iteration(1) / "trees.parquet")) == 4


def test_a_worker_whose_engine_serves_other_weights_stops_the_run(project, tmp_path, monkeypatch):
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "work"))
    with open_session(small(shards=2), project, map_shards=here) as session:
        rollout_step(session, 1)
        monkeypatch.setattr(
            "spo_core.rollout.transformers_engine.TransformersEngine._forward",
            lambda self, n: torch.randn(n, self.model.config.vocab_size),
        )
        with pytest.raises(EngineError, match="engine and trainer differ"):
            rollout_step(session, 1)


def test_the_number_of_parts_names_a_run_and_who_samples_them_does_not(project):
    def identity(*options: str) -> dict:
        return training_identity(small(*options), project)

    assert identity() == identity("run.task_runner={type: dask, workers: 1}")
    two = identity("run.task_runner={type: dask, workers: 2}")
    assert two == identity("run.task_runner={type: ray, workers: 2, address: 'ray://a:1', gpus: 1}") != identity()
    with pytest.raises(ConfigError, match=r"run\.task_runner dask"), open_session(small(shards=2), project):
        pass


def test_the_hostfile_is_checked_first_and_names_no_run(project, tmp_path):
    backend = "learn.backend={{type: deepspeed, ranks: 2, hostfile: {}}}"
    (tmp_path / "hosts").write_text("a slots=2\n")
    with_hosts = training_identity(small(backend.format("hosts")), project)
    assert with_hosts == training_identity(small(backend.format("null")), project)
    (tmp_path / "hosts").write_text("a slots=1\n")
    with pytest.raises(ConfigError, match="ranks 2 exceeds the 1 slots"):
        training_identity(small(backend.format("hosts")), project)
