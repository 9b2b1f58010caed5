"""Equivalences of whole training runs, on a random policy and a few questions: no server, no subprocess."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch

from spo_core.config import Params, load_params
from spo_core.errors import ConfigError, DataError, GradingError, RunError, TrainingError
from spo_core.paths import Paths
from spo_core.policy.checkpoint import load_policy, save_policy
from spo_core.problems.base import read_split
from spo_core.problems.prepare import prepare_splits
from spo_core.system.files import read_json
from spo_core.train.identity import check_training, training_identity
from spo_core.train.opening import open_session
from spo_core.train.questions import uniform
from spo_core.train.steps import credit_step, keep_step, rollout_step, train_step
from spo_core.tree import read_trees
from spo_core.verify import Outcome, Verdict
from tests.conftest import ROOT, SHORT

pytestmark = pytest.mark.slow

SMALL = (
    *SHORT,
    "run.threads=1",
    "run.iterations=4",
    "run.checkpoint_every=2",
    "run.validate_every=2",
    "data.train=40",
    "data.validation=6",
    "data.test=6",
    "rollout.questions=4",
    "rollout.context_length=48",
    "rollout.branch_factors=[3, 2]",
    "learn.optimizer_steps=2",
    "rollout.truncated=grade",
)
# a random policy is never right: with a reward that it can earn every step of training happens
GRADE = "spo_core.verify.verifier.Verifier.grade"


def grade_by_length(verifier, problem, answers, grader=None):
    return [Verdict(Outcome.CORRECT if len(text) % 2 == 0 else Outcome.WRONG, None) for text, _ in answers]


def prepared(root: Path, policy, tokenizer, monkeypatch, *overrides: str) -> Paths:
    """Data and a first policy below ``root``; rewarded is a completion with an even number of characters."""
    monkeypatch.setattr(GRADE, grade_by_length)
    paths = Paths(root)
    prepare_splits(small(*overrides), paths)
    save_policy(policy, tokenizer, paths.checkpoint("warmup"))
    return paths


@pytest.fixture
def project(tmp_path, policy, tokenizer, monkeypatch):
    return prepared(tmp_path, policy, tokenizer, monkeypatch)


def small(*overrides: str, preset: str | None = None) -> Params:
    shape = () if preset else ("credit.partition.tokens=20",)
    return load_params(ROOT, preset, (*SMALL, *shape, *overrides))


def train(params: Params, paths: Paths, stop_after: int | None = None) -> tuple[dict, list[dict], Path]:
    with open_session(params, paths) as session:
        while not session.finished and session.iteration != stop_after:
            number = session.iteration + 1
            rollout_step(session, number)
            credit_step(session, number)
            train_step(session, number)
        rows = session.run.read_metrics()
        weights = {k: v.clone() for k, v in session.model.state_dict().items()}
    return weights, [{k: v for k, v in r.items() if not k.startswith("timing/")} for r in rows], session.run.path


def same_bits(a: dict, b: dict) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("preset", [None, "grpo", "spo-chain", "restem", "dpo-positive", "dvo", "pav"])
def test_resumed_is_straight(project, tmp_path, preset, monkeypatch):
    """Stopped after iteration 3, one past the checkpoint at 2, and run again: the same bits and the same metrics."""
    shape = ["rollout.branch_factors=[3]", "rollout.questions=4"] if preset else []
    params = small(*shape, preset=preset)
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "a"))
    straight, rows, _ = train(params, project)
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "b"))
    train(params, project, stop_after=3)
    resumed, rows_again, _ = train(params, project)
    start = load_policy(project.checkpoint("warmup"))[0].state_dict()
    assert not same_bits(straight, start), "nothing was trained: the test shows nothing"
    assert same_bits(straight, resumed) and rows == rows_again
    assert [r["iteration"] for r in rows] == [1, 2, 3, 4] and "eval/validation_accuracy" in rows[1]


def test_resumed_is_straight_in_bfloat16(project, tmp_path, monkeypatch):
    """Sampled and trained with rounded weights; what is saved, and gone on from, has all digits."""
    params = small("learn.dtype=bfloat16", "learn.kl={type: penalty}", "learn.max_tokens_per_forward=60")
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "a"))
    straight, rows, _ = train(params, project)
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "b"))
    train(params, project, stop_after=3)
    resumed, rows_again, path = train(params, project)
    assert same_bits(straight, resumed) and rows == rows_again
    policy, _ = load_policy(path / "checkpoints" / "000004" / "policy")
    config = read_json(path / "checkpoints" / "000004" / "policy" / "config.json")
    assert same_bits(straight, policy.state_dict()) and config["dtype"] == "float32"
    lost = {k: v.bfloat16().float() for k, v in straight.items()}
    assert not any(torch.equal(v, lost[k]) for k, v in straight.items() if k.endswith("proj.weight"))
    with open_session(params, project) as session:
        assert session.rollouts.engine.model is session.working is session.trainer.backend.policy.model
        assert all(torch.equal(p, straight[k].bfloat16()) for k, p in session.working.named_parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_resume_to_the_bit_and_leave_the_first_policy(project, tmp_path, monkeypatch, dtype):
    """Frozen weights are those of the warm-up, the published policy is merged, and the reference policy is the same
    model: the KL is 0 until a step was made. An alpha that changes is another run."""
    pytest.importorskip("peft")
    lora = "policy.lora={rank: 4, alpha: 8, targets: [q_proj, v_proj, down_proj]}"
    params = small(lora, f"learn.dtype={dtype}", "learn.kl={type: penalty}", "learn.optimizer_steps=1")
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "a"))
    straight, rows, _ = train(params, project)
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "b"))
    train(params, project, stop_after=3)
    resumed, rows_again, path = train(params, project)
    assert same_bits(straight, resumed) and rows == rows_again
    assert rows[0]["train/kl"] == 0 < rows[1]["train/kl"]
    start = load_policy(project.checkpoint("warmup"))[0].state_dict()
    frozen = {n.replace(".base_layer", ""): t for n, t in straight.items() if ".lora_" not in n}
    assert frozen.keys() == start.keys()
    assert all(torch.equal(t, start[n].to(t.dtype)) for n, t in frozen.items() if t.dtype != torch.int64)
    assert all(bool(t.any()) for n, t in straight.items() if ".lora_B." in n), "nothing was trained"
    policy = path / "checkpoints" / "000004" / "policy"
    merged = load_policy(policy)[0].state_dict()
    changed = {n for n, t in merged.items() if not torch.equal(t, frozen[n].float())}
    assert changed == {n.replace(".lora_A.default", "") for n in straight if ".lora_A." in n}
    assert read_json(policy / "config.json")["dtype"] == "float32" and (policy / "adapter").is_dir()
    other = small(lora.replace("alpha: 8", "alpha: 16"))
    assert training_identity(other, project) != training_identity(small(lora), project)


def test_resumed_is_straight_with_everything_that_is_carried_over(project, tmp_path, monkeypatch):
    """Replay buffer, adaptive KL, a longer context whose learning rate restarts, the reference's micro-batches."""
    params = small(
        "learn.fidelity=reference",
        "learn.micro_batch=2",
        "learn.kl.adaptive={target: 0.001, horizon: 1}",
        "learn.replay={max_age: 3, per_question: 3, segments: 9}",
        "learn.warmup_steps=3",
        "learn.importance_cap=2.0",
        "learn.gradient_checkpointing=true",
        "rollout.context_schedule=[{from_iteration: 3, context_length: 56, restart_learning_rate: true}]",
        "learn.max_tokens_per_forward=60",
        "learn.max_logprob_gap=0.05",
    )
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "a"))
    straight, rows, _ = train(params, project)
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "b"))
    train(params, project, stop_after=3)
    resumed, rows_again, _ = train(params, project)
    assert same_bits(straight, resumed) and rows == rows_again
    assert rows[1]["replay/waiting"] > 0 and rows[3]["train/kl_coefficient"] != rows[0]["train/kl_coefficient"]
    rates = [row["train/learning_rate"] for row in rows]
    assert rates[2] == pytest.approx(rates[0]) and rates[1] > rates[2], "the rate restarts at iteration 3"
    assert max(row["rollout/completion_tokens"] for row in rows[2:]) > max(
        row["rollout/completion_tokens"] for row in rows[:2]
    )
    drawn, expired = (sum(row[f"replay/{name}"] for row in rows) for name in ("drawn", "expired"))
    assert sum(row["replay/added"] for row in rows) == drawn + expired + rows[-1]["replay/waiting"]


def test_whole_is_split_is_checkpointed(project, tmp_path, monkeypatch):
    """The same trajectory to rounding, however the trees are forwarded."""
    found = []
    for name, option in (
        ("a", "learn.attention=rows"),
        ("b", "learn.max_tokens_per_forward=50"),
        ("c", "learn.gradient_checkpointing=true"),
    ):
        monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / name))
        found.append(train(small(option, "run.iterations=2"), project)[0])
    for other in found[1:]:
        assert all(torch.allclose(found[0][k], other[k], atol=1e-5) for k in other)


def test_extending_a_run_equals_a_longer_one(project, tmp_path, monkeypatch):
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "a"))
    longer, _, _ = train(small("run.iterations=4"), project)
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "b"))
    _, _, first = train(small("run.iterations=2"), project)
    extended, _, second = train(small("run.iterations=4"), project)
    assert first == second and same_bits(longer, extended)


def test_how_often_a_run_saves_or_validates_changes_nothing(project, tmp_path, monkeypatch):
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "a"))
    often, _, _ = train(small("run.checkpoint_every=1", "run.validate_every=1"), project)
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "b"))
    seldom, _, _ = train(small("run.checkpoint_every=4", "run.validate_every=4"), project)
    assert same_bits(often, seldom)


def test_a_truncated_newest_checkpoint_falls_back_and_ends_the_same(project, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "a"))
    straight, _, _ = train(small(), project)
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "b"))
    _, _, path = train(small("run.checkpoint_every=1"), project, stop_after=3)
    damaged = path / "checkpoints" / "000003" / "policy" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    again, _, _ = train(small("run.checkpoint_every=1"), project)
    assert "is damaged" in caplog.text and same_bits(straight, again)


@pytest.mark.parametrize("name", ["policy/model.safetensors", "trainer/optimizer.safetensors", "replay/trees.parquet"])
def test_a_checkpoint_that_cannot_be_read_is_named(project, name):
    """Its files have their sizes, so nothing tells before it is loaded."""
    _, _, path = train(small("run.checkpoint_every=1"), project, stop_after=2)
    newest = path / "checkpoints" / "000002"
    data = (newest / name).read_bytes()
    (newest / name).write_bytes(bytes(byte ^ 0xFF for byte in data))
    with pytest.raises(RunError, match=rf"{newest}: cannot be read \(.+\); delete it to go on from the one before"):
        train(small("run.checkpoint_every=1"), project)
    shutil.rmtree(newest)
    assert len(train(small("run.checkpoint_every=1"), project)[1]) == 4


def test_what_decides_the_weights_is_the_identity(project):
    base = training_identity(small(), project)
    for same in ("run.iterations=9", "run.checkpoint_every=1", "run.wandb.mode=disabled", "evaluate.samples=9"):
        assert training_identity(small(same), project) == base
    for other in ("run.seed=1", "learn.epochs=2", "rollout.top_p=0.9", "credit.mask.threshold=0.8", "run.threads=2"):
        assert training_identity(small(other), project) != base
    (project.data("arithmetic") / "train.jsonl").write_text("changed")
    assert training_identity(small(), project)["data"] != base["data"]


def test_a_named_run_with_other_params_is_refused_before_anything_is_loaded(project):
    _, _, path = train(small("run.name=mine"), project, stop_after=1)
    before = sorted(p.stat().st_mtime_ns for p in path.rglob("*"))
    with pytest.raises(RunError, match=r"learn\.epochs \(was 1, is 2\)"):
        check_training(small("run.name=mine", "learn.epochs=2"), project)
    assert sorted(p.stat().st_mtime_ns for p in path.rglob("*")) == before


def test_a_prompt_that_fills_the_context_is_refused_by_its_question(project):
    with pytest.raises(DataError, match=r"question arithmetic-train-\d+: its prompt has \d+ tokens"):
        train(small("rollout.context_length=14"), project)


def ask_again(budget: int) -> list[str]:
    skip = "rollout.skip_solved={after: 1, iterations: 2}"
    return [
        "rollout.branch_factors=[2]",
        "credit.partition={type: whole}",
        f"rollout.resample={{max_tokens: {budget}}}",
        skip,
    ]


def test_questions_that_say_nothing_give_way_to_others(project, tmp_path, monkeypatch):
    """Kept are trees with an advantage; those that gave way count as tokens and in the reward; resumed = straight."""
    params = small(*ask_again(100_000), "learn.warmup_steps=30")  # so that every iteration meets a uniform question
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "a"))
    straight, rows, path = train(params, project)
    for number, row in enumerate(rows, start=1):
        folder = path / "iterations" / f"{number:06d}"
        kept = read_trees(folder / "trees.parquet")
        assert [q["question_id"] for q in read_json(folder / "questions.json")] == [t.question_id for t in kept]
        assert len(kept) == 4 and not any(map(uniform, kept)) and row["credit/segments_with_advantage"] == 1
        assert row["rollout/generated_tokens"] > sum(t.generated_tokens for t in kept)
        assert row["rollout/questions_asked"] > 4 and row["rollout/responses"] == 2 * row["rollout/questions_asked"]
    assert any(row["rollout/left_out_share"] > 0 for row in rows)
    assert rows[-1]["generated_tokens"] == sum(row["rollout/generated_tokens"] for row in rows)
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "b"))
    train(params, project, stop_after=3)
    resumed, rows_again, _ = train(params, project)
    assert same_bits(straight, resumed) and rows == rows_again


def test_a_budget_of_tokens_bounds_what_is_asked_again(project):
    """A round is begun where the budget has room for it at the mean so far; uniform trees fill up the iteration."""
    _, first, path = train(small("run.name=first", *ask_again(1), "run.iterations=1"), project)
    assert first[0]["rollout/questions_asked"] == 4 == len(read_trees(path / "iterations" / "000001" / "trees.parquet"))
    budget = int(first[0]["rollout/generated_tokens"] * 1.6)
    _, rows, path = train(small("run.name=second", *ask_again(budget), "run.iterations=2"), project)
    kept = read_trees(path / "iterations" / "000001" / "trees.parquet")
    assert 4 < rows[0]["rollout/questions_asked"] <= 7 and len(kept) == 4
    assert rows[0]["rollout/uniform_share"] > 0


def test_sampling_alone_resumes_with_the_same_questions(project, tmp_path, monkeypatch):
    found = {}
    for name, stops in (("a", (None,)), ("b", (1, 3, None))):
        monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / name))
        for stop in stops:
            with open_session(small(*ask_again(100_000)), project, rollouts_only=True) as session:
                while not session.finished and session.iteration != stop:
                    rollout_step(session, session.iteration + 1)
                    keep_step(session, session.iteration + 1)
        folders = sorted((session.run.path / "iterations").iterdir())
        found[name] = [(folder / "questions.json").read_text() for folder in folders]
    assert found["a"] == found["b"] and len(set(found["a"])) == 4


def test_a_budget_of_generated_tokens_ends_the_run_and_its_resume(project):
    params = small("run.max_generated_tokens=300", "run.iterations=99")
    _, rows, _ = train(params, project)
    assert rows[-1]["generated_tokens"] >= 300 > rows[-1]["generated_tokens"] - rows[-1]["rollout/generated_tokens"]
    assert train(params, project)[1] == rows


@pytest.mark.exhaustive
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra deepspeed")
def test_a_run_on_two_ranks_resumes_to_the_same_bits(project):
    """Straight through two iterations, then again from the checkpoint after the first, with other processes."""
    ranks = "learn.backend={type: deepspeed, ranks: 2, zero_stage: 2}"
    params = small(ranks, "run.iterations=2", "run.checkpoint_every=1")
    straight, rows, path = train(params, project)
    optimizer = (path / "checkpoints" / "000002" / "trainer" / "optimizer.safetensors").read_bytes()
    saved = load_policy(path / "checkpoints" / "000002" / "policy")[0].state_dict()
    shutil.rmtree(path / "checkpoints" / "000002")
    resumed, rows_again, _ = train(params, project)
    start = load_policy(project.checkpoint("warmup"))[0].state_dict()
    assert not same_bits(straight, start), "nothing was trained: the test shows nothing"
    assert same_bits(straight, resumed) and same_bits(straight, saved) and rows == rows_again
    assert (path / "checkpoints" / "000002" / "trainer" / "optimizer.safetensors").read_bytes() == optimizer
    assert not [p for p in path.rglob("*") if p.suffix in (".pkl", ".pt", ".bin")]


CHOICES = {
    "entropy, adaptive": [
        "credit.partition={type: entropy, threshold: 0.5, interval: 2}",
        "credit.value={type: adaptive_monte_carlo, min_rollouts: 1, max_rollouts: 2}",
        "credit.advantage={type: best_of_k_progress}",
    ],
    "delimiter": ["credit.partition={type: delimiter, text: '1'}", "credit.value={type: monte_carlo, rollouts: 1}"],
    "equal parts": ["credit.partition={type: equal_parts, parts: 3}", "credit.value={type: monte_carlo, rollouts: 1}"],
    "gold answer, chain": ["credit.partition={type: equal_parts, parts: 3}", "credit.value={type: gold_answer}"],
    "rloo": ["credit.partition={type: whole}", "credit.value={type: none}", "credit.advantage={type: leave_one_out}"],
}


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_of_credit_trains(project, name):
    params = small(*CHOICES[name], "rollout.branch_factors=[3]", "run.iterations=1")
    _, rows, _ = train(params, project)
    assert rows[0]["train/skipped"] == 0 and rows[0]["train/trained_tokens"] > 0


CRITICS = {
    "tokens": (
        "ppo",
        "credit.value={type: critic, warmup_iterations: 1, replay: 2, epochs: 1, min_explained_variance: null}",
    ),
    "tree": (
        None,
        "credit.value={type: critic, network: head, warmup_iterations: 1, min_explained_variance: null}",
        "credit.advantage={type: gae, lambda: 0.5}",
    ),
}


CRITICS["ranks"] = (*CRITICS["tokens"], "learn.backend={type: deepspeed, ranks: 2, zero_stage: 3}")
ON_RANKS = [
    pytest.mark.slow,
    pytest.mark.exhaustive,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra deepspeed"),
]


@pytest.mark.parametrize("name", ["tokens", "tree", pytest.param("ranks", marks=ON_RANKS)])
def test_resumed_is_straight_with_a_critic_and_its_warm_up_leaves_the_policy_alone(
    project, tmp_path, name, monkeypatch
):
    preset, *options = CRITICS[name]
    shape = ["rollout.branch_factors=[3]", "rollout.questions=4"] if preset else []
    length = ("run.iterations=3", "run.checkpoint_every=1", "run.validate_every=9")
    params = small(*shape, *length, *options, preset=preset)
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "a"))
    straight, rows, path = train(params, project)
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "b"))
    warm, _, _ = train(params, project, stop_after=1)
    start = load_policy(project.checkpoint("warmup"))[0].state_dict()
    assert same_bits(warm, start) and not same_bits(straight, start)
    resumed, rows_again, other = train(params, project)
    assert same_bits(straight, resumed) and rows == rows_again
    saved = [p / "checkpoints" / "000003" / "critic" / "critic.safetensors" for p in (path, other)]
    assert saved[0].read_bytes() == saved[1].read_bytes()
    assert [row["train/skipped"] for row in rows] == [1, 0, 0] and "critic/explained_variance" in rows[1]


def test_a_critic_that_explains_too_little_stops_the_run_before_it_is_used(project):
    params = small(CRITICS["tree"][1].replace("null", "0.9"), "credit.value.warmup_iterations=2")
    with pytest.raises(TrainingError, match=r"of returns after 2 iterations, less than credit\.value\.min_explained"):
        train(params, project)
    with pytest.raises(ConfigError, match="--rollouts-only trains no critic"):
        check_training(params, project, rollouts_only=True)


@pytest.mark.parametrize("name", ["dapo", "dr-grpo", "gspo", "cispo"])
def test_every_loss_trains(project, name):
    params = small("rollout.branch_factors=[3]", "run.iterations=2", preset=name)
    _, rows, _ = train(params, project)
    assert rows[0]["train/skipped"] == 0 and "train/clip_fraction" in rows[1]
    assert rows[1]["train/ratio"] == pytest.approx(1, abs=0.2)


def test_long_questions_are_left_out_of_both_splits_and_counted(project, caplog):
    longest = "data.max_question_tokens=14"
    with caplog.at_level("WARNING"), open_session(small(longest), project) as session:
        rows = {"train": session.rows, "validation": session.validation}
        encode = session.tokenizer.encode
        assert all(len(encode(r.question, add_special_tokens=False)) <= 14 for kept in rows.values() for r in kept)
    for split, kept in rows.items():
        whole = len(read_split(project.data("arithmetic"), split))
        assert 0 < len(kept) < whole
        assert f"leaves out {whole - len(kept)} of {whole} questions of split {split}" in caplog.text
    with (
        pytest.raises(DataError, match="leaves 0 questions of split train"),
        open_session(small("data.max_question_tokens=1"), project),
    ):
        pass


def test_a_run_stops_where_its_answers_cannot_be_compared_and_goes_on_with_another_limit(project, monkeypatch):
    """What was answered can be read; the limit is no part of what a run is."""
    monkeypatch.setattr(
        GRADE, lambda verifier, problem, answers, grader: [Verdict(Outcome.UNPARSABLE, None) for _ in answers]
    )
    with pytest.raises(GradingError, match=r"000001.trees\.parquet, iteration 1: 100% .*max_failed_share 0\.5"):
        train(small(), project)
    (run,) = (project.work).glob("train-*")
    assert (run / "iterations" / "000001" / "trees.parquet").is_file()
    _, rows, again = train(small("verify.max_failed_share=1"), project)
    assert again == run and all(row["rollout/failed_share"] == 1 for row in rows)
