"""Every published run resolves to its numbers, transcribed here from the published configurations and the paper."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spo_core.config import Params, flatten, load_params
from spo_core.errors import ConfigError
from tests.conftest import ROOT

FOLDER = ROOT / "params" / "presets"
EMBEDDED = {
    "grpo",
    "short-arithmetic",
    "spo-chain",
    "gsm8k-smoke",
    "dapo",
    "ppo",
    "dr-grpo",
    "gspo",
    "cispo",
    "rloo",
    "vineppo",
    "lora-24gb",
}
EMBEDDED |= {"restem", "dpo-positive", "dvo", "pav"}
OFFLINE = {"rho1b-restem", "rho1b-dpo-positive", "rho1b-dvo", "rho1b-pav"}  # their numbers: test_offline_presets.py


@dataclass(frozen=True)
class Row:
    """One run of the published tables. Where code and paper disagree it is the paper's."""

    questions: int
    branches: tuple[int, ...]
    episodes: int
    """Trained in one epoch."""
    batch: int
    epochs: int
    steps: int
    """Optimizer steps an iteration."""
    total: int
    warmup: int
    partition: dict[str, Any]
    value: dict[str, Any]
    advantage: str
    masked: bool


FANS = {"type": "monte_carlo", "rollouts": 9, "prompt": "cut", "prover": None}
FANS_AND_PROMPT = FANS | {"prompt": "always"}
CRITIC = {
    "type": "critic",
    "network": "copy",
    "surprise": False,
    "learning_rate": 1e-6,
    "epochs": 2,
    "optimizer_steps": 8,
    "replay": 1,
    "loss": "squared",
    "clip": 0.2,
    "warmup_iterations": 0,
    "min_explained_variance": None,
}
WHOLE, NONE, MEAN = {"type": "whole"}, {"type": "none"}, {"type": "tree_mean"}


def chain(interval: int, masked: bool = True) -> Row:
    cut = {"type": "cutpoints", "prob_threshold": 0.9, "interval": interval}
    return Row(64, (8,), 512, 64, 2, 16, 16000, 480, cut, FANS, "difference", masked)


def responses(partition: dict, value: dict, advantage: str, masked: bool = False) -> Row:
    return Row(64, (8,), 512, 64, 2, 16, 16000, 480, partition, value, advantage, masked)


def tree(branches, episodes, steps, total, warmup, tokens=30, advantage="difference") -> Row:
    fixed = {"type": "fixed_tokens", "tokens": tokens}
    return Row(16, branches, episodes, 128, 1, steps, total, warmup, fixed, MEAN, advantage, True)


PUBLISHED = {
    "rho1b-spo-chain-int2": chain(2),
    "rho1b-spo-chain-int5": chain(5),
    "rho1b-spo-chain-int10": chain(10),
    "rho1b-spo-chain-int100": chain(100),
    "rho1b-spo-chain-int5-nomask": chain(5, masked=False),
    "rho1b-spo-tree-666": tree((6, 6, 6), 512, 4, 4000, 120),
    "rho1b-spo-tree-666-normalized": tree((6, 6, 6), 512, 4, 4000, 120, advantage="group_normalized"),
    "rho1b-spo-tree-456": tree((4, 5, 6), 512, 4, 4000, 120),
    "rho1b-spo-tree-444": tree((4, 4, 4), 384, 3, 3000, 90),
    "rho1b-spo-tree-654": tree((6, 5, 4), 512, 4, 4000, 120),
    "rho1b-spo-tree-888": tree((8, 8, 8), 1024, 8, 8000, 240),
    "rho1b-grpo": responses(WHOLE, NONE, "group_normalized"),
    "rho1b-grpo-mask": responses(WHOLE, NONE, "group_normalized", masked=True),
    "rho1b-rloo": responses(WHOLE, NONE, "leave_one_out"),
    "rho1b-vineppo": responses(
        {"type": "delimiter", "text": "\n", "max_cuts": 25}, FANS_AND_PROMPT, advantage="difference"
    ),
    "rho1b-ppo": responses(WHOLE, CRITIC, "gae"),
    "rho1b-naive": responses({"type": "equal_parts", "parts": 3}, FANS_AND_PROMPT, advantage="difference"),
    "qwen1.5b-grpo": Row(64, (8,), 512, 128, 1, 4, 4000, 120, WHOLE, NONE, "group_normalized", False),
    "qwen1.5b-spo-tree-666": tree((6, 6, 6), 1024, 8, 8000, 240, tokens=600),
}
# the same in all runs of one policy
RHO = {
    "run.seed": 42,
    "run.threads": 16,
    "run.iterations": 1000,
    "run.validate_every": 10,
    "run.checkpoint_every": 10,
    "data.problem_set": "gsm8k",
    "data.validation": 373,
    "data.max_question_tokens": 1512,
    "policy.init.type": "pretrained",
    "policy.init.path": "realtreetune/rho-1b-sft-GSM8K",
    "policy.warmup.steps": 0,
    "rollout.engine.type": "vllm",
    "rollout.engine.gpu_memory_utilization": 0.3,
    "rollout.max_concurrency": 512,
    "rollout.temperature": 0.6,
    "rollout.top_p": 0.9,
    "rollout.max_completion_tokens": 1024,
    "rollout.context_length": 2047,
    "rollout.context_schedule": [],
    "rollout.truncated": "zero",
    "learn.micro_batch": 8,
    "learn.learning_rate": 1e-6,
    "learn.warmup": "log",
    "learn.betas": [0.9, 0.999],
    "learn.epsilon": 1e-8,
    "learn.weight_decay": 0.0,
    "learn.max_grad_norm": 1.0,
    "learn.clip_low": 0.2,
    "learn.clip_high": 0.2,
    "learn.max_ratio": 10.0,
    "learn.fidelity": "paper",
    "learn.normalization": "batch",
    "learn.whitening": "none",
    "learn.kl.type": "none",
    "learn.gradient_checkpointing": True,
    "learn.dtype": "bfloat16",
    "learn.backend.type": "deepspeed",
    "learn.backend.ranks": 1,
    "learn.backend.zero_stage": 0,
    "evaluate.contexts.1k": 1024,
    "evaluate.samples": 16,
    "evaluate.temperature": 0.35,
    "evaluate.top_p": 1.0,
}
QWEN = {key: value for key, value in RHO.items() if key != "evaluate.contexts.1k"} | {
    "run.checkpoint_every": 5,
    "data.problem_set": "math",
    "data.train": 11500,
    "data.validation": 500,
    "data.max_question_tokens": None,
    "policy.init.path": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    "rollout.engine.gpu_memory_utilization": 0.5,
    "rollout.top_p": 1.0,
    "rollout.max_completion_tokens": 4096,
    "rollout.context_length": 2048,
    "learn.micro_batch": 2,
    "evaluate.contexts.2k": 2048,
    "evaluate.contexts.4k": 4096,
    "evaluate.contexts.32k": 32768,
    "evaluate.samples": 1,
    "evaluate.temperature": 0.6,
    "evaluate.top_p": 0.95,
}
SWITCH = {"qwen1.5b-grpo": 441, "qwen1.5b-spo-tree-666": 231}  # ours: the iteration is not published


def flat(params: Params) -> dict[str, Any]:
    return flatten(params.model_dump(mode="json"))


def test_every_preset_is_published_or_embedded():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == EMBEDDED | OFFLINE | set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_its_own_numbers(name):
    row, params = PUBLISHED[name], load_params(ROOT, name)
    rollout, learn, credit = params.rollout, params.learn, params.credit
    assert (rollout.questions, rollout.branch_factors) == (row.questions, row.branches)
    assert learn.epochs == row.epochs
    assert learn.optimizer_steps * learn.epochs == row.steps
    assert row.episodes / learn.optimizer_steps == row.batch
    assert learn.decay_steps == row.total == row.steps * params.run.iterations
    assert learn.warmup_steps == row.warmup == -(-3 * row.total // 100)
    assert credit.partition.model_dump() == row.partition
    assert credit.value.model_dump() == row.value
    assert credit.advantage.type == row.advantage
    assert credit.mask.model_dump() == (
        {"type": "low_probability", "threshold": 0.9} if row.masked else {"type": "all"}
    )
    if row.partition["type"] == "fixed_tokens":
        assert learn.replay.model_dump() == {
            "max_age": 8,
            "per_question": 32,
            "segments": row.episodes,
            "rule": "reference",
            "unit": "siblings",
        }
        assert learn.zero_advantage == "drop"
    else:
        assert rollout.questions * rollout.branch_factors[0] == row.episodes
        assert (learn.replay.max_age, learn.replay.per_question, learn.replay.segments) == (1, None, None)
        assert learn.zero_advantage == "keep"


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_that_runs_of_one_policy_share(name):
    expected = dict(QWEN if name.startswith("qwen") else RHO)
    if name == "rho1b-ppo":
        expected |= {"credit.advantage.lambda": 1.0, "credit.advantage.over": "tokens"}
    if name in SWITCH:
        stage = {"from_iteration": SWITCH[name], "context_length": 4096, "restart_learning_rate": False}
        expected["rollout.context_schedule"] = [stage]
    resolved = flat(load_params(ROOT, name))
    assert {key: resolved.get(key, "absent") for key in expected} == expected
    contexts = [key for key in resolved if key.startswith("evaluate.contexts.")]
    assert set(contexts) <= set(expected), "contexts of the embedded default are left over"


@pytest.mark.parametrize("name", PUBLISHED)
def test_fidelity_flips_normalisation_whitening_and_kl_alone(name):
    paper, reference = (load_params(ROOT, name, (f"learn.fidelity={f}",)) for f in ("paper", "reference"))
    before, after = paper.model_dump(mode="json"), reference.model_dump(mode="json")
    changed = {key for key in after["learn"] if after["learn"][key] != before["learn"][key]}
    assert changed == {"fidelity", "normalization", "whitening", "kl"}
    assert {key: value for key, value in before.items() if key != "learn"} == {
        key: value for key, value in after.items() if key != "learn"
    }
    assert (after["learn"]["normalization"], after["learn"]["whitening"]) == ("micro_batch", "micro_batch")
    kl = reference.learn.kl
    assert kl.type == "penalty" and (kl.estimator, kl.coefficient) == ("k3", 1e-4)
    assert (kl.where, kl.aggregation, kl.adaptive) == ("loss", "sequence", None)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_does_not_depend_on_the_embedded_default(name, tmp_path):
    """Every published number stands in the preset, not in a base file that someone may change."""
    shutil.copytree(ROOT / "params", tmp_path / "params")
    learn = tmp_path / "params" / "learn.yaml"
    learn.write_text(
        "learn: {learning_rate: 1.0, warmup_steps: 7, betas: [0.5, 0.5], epochs: 9, optimizer_steps: 1,"
        " clip_low: 0.5, clip_high: 0.5, max_grad_norm: 3.0, weight_decay: 0.5, zero_advantage: drop,"
        " replay: {max_age: 5, per_question: 3, segments: 7, unit: segments}}\n"
    )
    mine, committed = (load_params(root, name).learn.model_dump() for root in (tmp_path, ROOT))
    if "tree" not in name:
        mine["replay"]["unit"] = committed["replay"]["unit"]  # of no consequence where nothing waits
    assert {k: v for k, v in mine.items() if k not in FREE} == {k: v for k, v in committed.items() if k not in FREE}


FREE = {"max_logprob_gap"}  # no published number


@pytest.fixture
def project(tmp_path) -> Path:
    shutil.copytree(ROOT / "params", tmp_path / "params")
    return tmp_path


def test_a_preset_extends_another_and_wins(project):
    folder = project / "params" / "presets"
    (folder / "mine.yaml").write_text("extends: rho1b-spo-chain-int10\nrollout: {questions: 32}\n")
    params = load_params(project, "mine")
    assert params.rollout.questions == 32
    assert params.credit == load_params(ROOT, "rho1b-spo-chain-int10").credit
    assert params.run == load_params(ROOT, "rho1b-spo-chain-int5").run


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            "extends: rho1b-spo-chain-int7",
            r"mine\.yaml: extends 'rho1b-spo-chain-int7', which is no preset; there are:",
        ),
        ("extends: [grpo]", r"mine\.yaml: extends \['grpo'\], which is no preset"),
        ("extends: mine", r"mine\.yaml: extends 'mine', which extends this one in turn"),
        ("extends: other", r"other\.yaml: extends 'mine', which extends this one in turn"),
        ("extends: grpo\nrollout: {question: 3}", r"mine\.yaml:2: unknown key rollout\.question"),
    ],
)
def test_what_cannot_be_extended_is_refused_naming_the_file(project, content, says):
    folder = project / "params" / "presets"
    (folder / "mine.yaml").write_text(content + "\n")
    (folder / "other.yaml").write_text("extends: mine\n")
    with pytest.raises(ConfigError, match=says):
        load_params(project, "mine")


def test_a_base_is_no_preset():
    with pytest.raises(ConfigError, match="no preset 'base/rho1b'"):
        load_params(ROOT, "base/rho1b")
