"""Recorded rollouts: a replay is the run that it replays, and whatever does not fit is refused at once."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from spo_core.config import Params, load_params
from spo_core.errors import ConfigError, DataError, RunError, SPOError, TrainingError
from spo_core.paths import Paths
from spo_core.policy.checkpoint import load_policy
from spo_core.rollout.gap import gap_limit
from spo_core.train.identity import NO_LIMIT, check_training, training_identity, training_run
from spo_core.train.opening import open_session
from spo_core.train.recorded import complete_iterations
from spo_core.train.steps import credit_step, keep_step, replay_step, rollout_step, train_step
from spo_core.tree import read_trees, write_trees
from tasks.records import RunSpec
from tests.conftest import ROOT
from tests.invariants.test_training_runs import SMALL, prepared, same_bits

pytestmark = pytest.mark.slow


def small(*overrides: str) -> Params:
    return load_params(ROOT, None, (*SMALL, "run.iterations=3", "run.validate_every=3", *overrides))


@pytest.fixture
def project(tmp_path, policy, tokenizer, monkeypatch) -> Paths:
    monkeypatch.setattr("spo_core.train.identity.code_digest", lambda *_: "unchanged")  # a second each time
    return prepared(tmp_path, policy, tokenizer, monkeypatch)


def train(params: Params, paths: Paths, replay: Path | None = None, stop_after: int | None = None):
    """Weights, metrics and working directory of a run; as flows/train.py, without Prefect."""
    with open_session(params, paths, replay=None if replay is None else str(replay)) as session:
        while not session.finished and session.iteration != stop_after:
            number = session.iteration + 1
            (rollout_step if session.recorded is None else replay_step)(session, number)
            credit_step(session, number)
            train_step(session, number)
        rows = [{k: v for k, v in r.items() if not k.startswith("timing/")} for r in session.run.read_metrics()]
        return {k: v.clone() for k, v in session.model.state_dict().items()}, rows, session.run.path


def record(params: Params, paths: Paths, stop_after: int | None = None) -> Path:
    """The working directory of rollouts alone."""
    with open_session(params, paths, rollouts_only=True) as session:
        while not session.finished and session.iteration != stop_after:
            number = session.iteration + 1
            rollout_step(session, number)
            credit_step(session, number)
            keep_step(session, number)
        return session.run.path


def test_replaying_a_run_is_the_run(project):
    """The same weights, metrics and credits, straight or stopped between two checkpoints and resumed."""
    weights, rows, recorded = train(small(), project)
    start = load_policy(project.checkpoint("warmup"))[0].state_dict()
    assert not same_bits(weights, start), "nothing was trained: the test shows nothing"
    train(small(), project, replay=recorded, stop_after=1)
    again, rows_again, path = train(small(), project, replay=recorded)
    assert path != recorded and path.name.startswith("replay-")
    assert same_bits(weights, again) and rows == rows_again
    for number in ("000001", "000002", "000003"):
        for name in ("questions.json", "trees.parquet", "credits.parquet"):
            source, copy = (folder / "iterations" / number / name for folder in (recorded, path))
            assert source.read_bytes() == copy.read_bytes()
            assert (source.stat().st_ino == copy.stat().st_ino) == (name != "credits.parquet")


def test_another_loss_and_another_advantage_train_on_the_same_trees(project):
    """However far the policy gets from the one that sampled; only where it must not, the limit on the gap holds."""
    weights, rows, recorded = train(small(), project)
    apart, other, _ = train(small("learn.learning_rate=0.02", "learn.clip_high=0.9"), project, replay=recorded)
    assert other[2]["train/logprob_gap"] > gap_limit(small()) > rows[2]["train/logprob_gap"]
    changed = "credit.advantage={type: best_of_k_progress}", "credit.mask={type: all}"
    progress, _, _ = train(small(*changed), project, replay=recorded)
    assert not same_bits(weights, apart) and not same_bits(weights, progress)
    trees = recorded / "iterations" / "000001" / "trees.parquet"
    doubled = [replace_logprobs(tree, 2.0) for tree in read_trees(trees)]
    write_trees(trees, doubled)
    with pytest.raises(TrainingError, match="differ by"):
        train(small(), project, replay=recorded)


def replace_logprobs(tree, factor: float):
    return replace(tree, nodes=tuple(replace(n, logprobs=(n.logprobs * factor).astype(np.float32)) for n in tree.nodes))


def test_rollouts_alone_are_of_the_first_policy_go_on_and_can_be_trained_on(project):
    ordinary = train(small(), project, stop_after=1)[2]
    record(small(), project, stop_after=1)
    path = record(small("run.iterations=2"), project)
    assert path.name.startswith("rollouts-") and not (path / "checkpoints").exists()
    assert [row["iteration"] for row in json_lines(path / "metrics.jsonl")] == [1, 2] and complete_iterations(path) == 2
    first, second = (path / "iterations" / n for n in ("000001", "000002"))
    assert (first / "trees.parquet").read_bytes() == (ordinary / "iterations/000001/trees.parquet").read_bytes()
    assert {tree.policy_version for tree in read_trees(second / "trees.parquet")} == {0}
    before = {p: p.stat().st_mtime_ns for p in (path / "iterations").rglob("*")}
    (second / "COMPLETE").unlink()  # killed there
    record(small("run.iterations=2"), project)
    after = {p: p.stat().st_mtime_ns for p in (path / "iterations").rglob("*")}
    assert {p.parent for p in before if after[p] == before[p] and p.is_file()} == {first}
    rows = json_lines(path / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == [1, 2]
    assert rows[1]["generated_tokens"] == sum(row["rollout/generated_tokens"] for row in rows)
    assert training_run(small("run.iterations=2"), project, replay=str(path)).learn.max_logprob_gap == NO_LIMIT
    assert training_run(small(), project).learn.max_logprob_gap == gap_limit(small())
    (second / "rollout.json").unlink()
    _, trained, _ = train(small("run.iterations=2"), project, replay=path)
    assert [row["train/skipped"] for row in trained] == [0, 0]
    assert trained[1]["rollout/reward"] == rows[1]["rollout/reward"], "counted from the trees where it was not kept"


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_budget_that_the_recorded_run_kept_is_kept_again(project):
    params = small("run.max_generated_tokens=300", "run.iterations=99")
    weights, rows, recorded = train(params, project)
    again, rows_again, _ = train(params, project, replay=recorded)
    assert len(rows) < 99 and same_bits(weights, again) and rows == rows_again


def test_what_does_not_fit_is_refused_before_anything_is_written(project, tmp_path):
    recorded = train(small("run.iterations=2"), project)[2]
    fine = small("run.iterations=2")
    check_training(fine, project, replay=str(recorded))
    trees = Path("iterations") / "000002" / "trees.parquet"

    def refused(says: str, params: Params = fine, damage=None, error: type[SPOError] = RunError):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(recorded, copy)
        if damage:
            damage(copy)
        before = sorted(p.name for p in project.work.iterdir())
        with pytest.raises(error, match=says) as raised:
            check_training(params, project, replay=str(copy))
        assert str(copy) in str(raised.value) and str(raised.value).count("\n") <= 1
        assert sorted(p.name for p in project.work.iterdir()) == before

    def change_manifest(folder: Path, **changes):
        path = folder / "manifest.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"identity": content["identity"] | changes}))

    def cut(folder: Path):
        (folder / trees).write_bytes((folder / trees).read_bytes()[:-200])

    def overwrite(folder: Path):
        content = bytearray((folder / trees).read_bytes())
        content[100:400] = bytes(300)
        (folder / trees).write_bytes(bytes(content))

    refused("manifest.json is missing", damage=lambda f: (f / "manifest.json").unlink())
    refused("manifest.json: damaged", damage=lambda f: (f / "manifest.json").write_text("{"), error=DataError)
    refused(r"000001/COMPLETE is missing.*--rollouts-only printed", damage=lambda f: shutil.rmtree(f / "iterations"))
    refused("2 complete iterations are recorded, run.iterations is 3; set it to 2 or less", small())
    refused(r"1 complete.*is 2", damage=lambda f: (f / "iterations/000002/COMPLETE").unlink())
    refused(r"manifest.json.*rollout.temperature \(was 1.0, is 0.5\)", small("rollout.temperature=0.5"))
    refused(r"credit.partition.tokens \(was \d+, is 3\)", small("credit.partition.tokens=3"))
    refused(r"rollout.truncated \(was 'grade', is 'zero'\)", small("rollout.truncated=zero"))
    refused(r"verify.rewards.wrong \(was 0.0, is -1.0\)", small("verify.rewards.wrong=-1"))
    refused(r"verify.grader \(was 'exact', is 'minerva'\)", small("verify.grader=minerva"))
    refused(r"rollout.branch_factors \(was \[3, 2\], is \[4\]\)", small("rollout.branch_factors=[4]"))
    refused(r"problem_set \(was 'gsm8k', is 'arithmetic'\)", damage=lambda f: change_manifest(f, problem_set="gsm8k"))
    refused(r"data \(was abababababab\.\.\., is \w{12}\.\.\.\)", damage=lambda f: change_manifest(f, data="ab" * 32))
    refused("trees.parquet: damaged", damage=cut, error=DataError)
    refused("trees.parquet: damaged", damage=overwrite, error=DataError)
    refused("000002: its trees are gone.*run.keep_rollouts", damage=lambda f: (f / trees).unlink())
    refused("no trees of iteration 2", damage=lambda f: shutil.copy(f / "iterations/000001" / trees.name, f / trees),
            error=DataError)  # fmt: skip
    config = project.checkpoint("warmup") / "config.json"
    config.write_text(config.read_text().replace('"vocab_size": ', '"vocab_size": 5, "was": '))
    refused(r"token id \d+ exceeds the policy's vocabulary of 5", error=DataError)


def test_trees_that_change_under_a_replay_end_it(project):
    recorded = train(small("run.iterations=2"), project)[2]
    with open_session(small("run.iterations=2"), project, replay=str(recorded)) as session:
        replay_step(session, 1)
        shutil.copy(recorded / "iterations/000001/trees.parquet", recorded / "iterations/000002/trees.parquet")
        with pytest.raises(DataError, match="000002: changed since this replay began"):
            replay_step(session, 2)


def test_each_kind_of_run_has_a_directory_of_its_own(project):
    """Even with run.name; a replay of other trees is another run, and none replays the directory it works in."""
    named = small("run.name=mine", "run.iterations=1")
    _, _, ordinary = train(named, project)
    rollouts, replay = record(named, project), train(named, project, replay=ordinary)[2]
    assert [p.name for p in (ordinary, rollouts, replay)] == ["train-mine", "rollouts-mine", "replay-mine"]
    trees = rollouts / "iterations" / "000001" / "trees.parquet"
    write_trees(trees, [replace_logprobs(tree, 0.5) for tree in read_trees(trees)])
    with pytest.raises(RunError, match=r"replay \(was .*choose another run.name"):
        check_training(named, project, replay=str(rollouts))
    with pytest.raises(RunError, match="where the replay itself works"):
        check_training(named, project, replay=str(replay))
    with pytest.raises(ConfigError, match="leave out one"):
        check_training(named, project, replay=str(ordinary), rollouts_only=True)


def test_a_run_reads_what_was_prepared_with_its_params_and_publishes_to_a_place_of_its_own(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "params", tmp_path / "params")
    monkeypatch.chdir(tmp_path)

    def make(name: str | None) -> Path:
        folder = Paths(tmp_path, name).checkpoint("warmup")
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        return Paths(tmp_path, name).output

    main, grpo, named = make(None), make("grpo"), make("slow")
    epochs, steps = ("learn.epochs=2",), ("data.arithmetic.steps=[2, 3]",)
    replay = RunSpec.here(replay="work/train-1")
    assert replay.run_name == "replay" and replay.inputs.output == main and replay.paths.output != main
    assert RunSpec.here(rollouts_only=True).run_name == "rollouts"
    assert RunSpec.here("grpo", (), replay="x").run_name == "grpo-replay"
    assert RunSpec.here("grpo", epochs, replay="x").inputs.output == grpo
    assert RunSpec.here(None, epochs, rollouts_only=True).inputs.output == main
    assert RunSpec.here("spo-chain", replay="x").inputs.output == main
    assert RunSpec.here(None, steps, "slow", replay="x").inputs.output == named
    assert RunSpec.here(None, steps, "slow", replay="x").run_name == "slow-replay"
    other = RunSpec.here(None, steps, rollouts_only=True)
    assert other.inputs == replace(other, rollouts_only=False).paths, "other data must be prepared first"
    ordinary = RunSpec.here(None, epochs)
    assert ordinary.inputs.output == main and ordinary.paths.output != main, "overrides of learning need no other data"
    assert make(ordinary.run_name) == ordinary.inputs.output, "its own come first"
    assert RunSpec.here(None, steps).inputs == RunSpec.here(None, steps).paths
    assert yaml.safe_load((ROOT / "params/data.yaml").read_text())["data"]["arithmetic"]["steps"] != [2, 3]


def test_what_an_engine_may_take_is_not_what_a_run_is(project):
    """Memory, time limits and devices may change when a run is resumed; what is sampled may not."""
    identity = training_identity(small("rollout.engine={type: vllm}"), project)
    more = "{type: vllm, gpu_memory_utilization: 0.9, cache_gib: 2, sleep: false, first_gpu: 1, request_seconds: 9}"
    assert training_identity(small(f"rollout.engine={more}"), project) == identity
    assert training_identity(small("rollout.engine={type: vllm, dtype: bfloat16}"), project) != identity
