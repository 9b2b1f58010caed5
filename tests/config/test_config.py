"""Params: the committed files are valid, overlays merge as documented, and mistakes are named."""

import shutil
from pathlib import Path

import pytest

from spo_core.config import NAMESPACES, Params, flatten, load_params
from spo_core.errors import ConfigError
from tests.conftest import ROOT

PRESETS = sorted(p.stem for p in (ROOT / "params" / "presets").glob("*.yaml"))


@pytest.fixture
def project(tmp_path) -> Path:
    shutil.copytree(ROOT / "params", tmp_path / "params")
    return tmp_path


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_every_preset_resolves(preset):
    assert load_params(ROOT, preset).rollout.questions >= 1


def test_each_file_holds_its_own_namespace():
    assert sorted(p.stem for p in (ROOT / "params").glob("*.yaml")) == sorted(NAMESPACES)


def test_an_overlay_of_another_type_replaces_the_mapping_and_of_the_same_merges():
    params = load_params(ROOT, None, ("credit.mask={type: all}", "credit.partition.tokens=7"))
    assert params.credit.mask.model_dump() == {"type": "all"}
    assert params.credit.partition.model_dump() == {"type": "fixed_tokens", "tokens": 7}


def test_numbers_without_a_dot_in_scientific_notation_are_numbers():
    assert load_params(ROOT, None, ("learn.learning_rate=1e-4",)).learn.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("learn.learning_rte=1", "unknown key learn.learning_rte"),
        ("lern.learning_rate=1", "unknown key lern"),
        ("learn.learning_rate=fast", r"learn.learning_rate: .*number.*'fast'"),
        ("learn.learning_rate=-1", "learn.learning_rate: .*greater than 0"),
        ("rollout.top_p=1.5", "rollout.top_p: .*less than or equal to 1"),
        ("credit.partition={type: fixed_tokens, size: 3}", "unknown key credit.partition.size"),
        ("policy.init={type: pretrained}", "policy.init.path: Field required"),
        ("credit.partition={type: hexagons}", "credit.partition: .*fixed_tokens"),
        ("rollout.branch_factors=[]", "rollout.branch_factors"),
        ("credit.partition={type: whole}", "branch_factors has 3 depths"),
        ("learn.optimizer_steps=1000", "exceeds rollout.questions"),
        ("run.name=../elsewhere", "run.name"),
        ("run.iterations=true", "run.iterations: .*integer"),
        ("run.iterations='40'", "run.iterations: .*integer"),
        ("learn.learning_rate=.inf", "learn.learning_rate: .*finite"),
        ("learn.betas=[0.9, 1.0]", r"learn.betas.1: .*less than 1"),
        ("rollout.context_length=5000", "exceeds policy.init.max_positions 256"),
        ("evaluate.contexts.long=5000", "exceeds policy.init.max_positions 256"),
        ("credit.partition={type: spiral, size: 3}", "credit.partition: .*spiral"),
        ("data.arithmetic.steps=[5,2]", "fewest <= most"),
        ("learn", "namespace.key=value"),
        ("learn.betas=[0.9", "not valid YAML"),
    ],
)
def test_a_mistake_is_refused_by_its_key_in_two_lines(override, says):
    with pytest.raises(ConfigError, match=says) as refusal:
        load_params(ROOT, None, (override,))
    assert override.split("=")[0].split(".")[0] in str(refusal.value) and str(refusal.value).count("\n") <= 1


def test_an_unknown_key_in_a_file_names_the_file(project):
    path = project / "params" / "learn.yaml"
    path.write_text(path.read_text() + "  momentum: 0.9\n")
    with pytest.raises(ConfigError, match=r"learn\.yaml:[0-9]+: unknown key learn\.momentum"):
        load_params(project)


def test_missing_files_presets_and_keys_are_named(project):
    with pytest.raises(ConfigError, match=r"there are: .*grpo"):
        load_params(project, "gpro")
    (project / "params" / "learn.yaml").write_text("learn: {}\n")
    with pytest.raises(ConfigError, match=r"learn\.yaml: learn\.learning_rate: Field required"):
        load_params(project)
    (project / "params" / "learn.yaml").unlink()
    with pytest.raises(ConfigError, match="run from the project's folder"):
        load_params(project)


def test_flatten_names_every_leaf():
    assert flatten({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "a.c": {}, "d": [2]}


def test_every_field_is_documented():
    """Only unions may go without a docstring: their members have one."""
    undocumented = []

    def visit(model, prefix):
        for name, field in model.model_fields.items():
            nested = getattr(field.annotation, "model_fields", None)
            if nested is not None:
                visit(field.annotation, f"{prefix}{name}.")
            elif field.description is None:
                undocumented.append(f"{prefix}{name}")

    visit(Params, "")
    assert set(undocumented) <= ALLOWED, set(undocumented) - ALLOWED


ALLOWED = {
    "policy.init",
    "rollout.engine",
    "credit.partition",
    "credit.value",
    "credit.advantage",
    "credit.mask",
    "learn.backend",
}


@pytest.mark.parametrize(
    ("preset", "override", "says"),
    [
        ("dvo", "learn.zero_advantage=drop", r"learn: zero_advantage: learn\.loss dvo .*choose keep"),
        ("dvo", "learn={fidelity: reference, micro_batch: 2}", r"normalization: learn\.loss dvo .*choose batch"),
        ("dvo", "learn.normalization=episode", r"normalization: learn\.loss dvo .*choose batch"),
        ("dpo-positive", "learn.kl={type: penalty}", r"kl: learn\.loss dpo_positive .*choose none"),
        ("dpo-positive", "learn.importance_cap=2", r"importance_cap: learn\.loss dpo_positive .*choose null"),
        ("dvo", "learn.max_ratio=2", r"max_ratio: learn\.loss dvo .*choose null"),
        ("dpo-positive", "learn.replay.unit=segments", r"replay\.unit: learn\.loss dpo_positive .*choose siblings"),
        ("dpo-positive", "rollout.branch_factors=[1]", r"learn\.loss dpo_positive .*rollout\.branch_factors \[1\]"),
        ("dvo", "credit.mask={type: low_probability}", r"learn\.loss dvo .*credit\.mask must be all"),
        ("spo-chain", "learn.loss={type: dvo}", r"zero_advantage: learn\.loss dvo"),
        ("restem", "learn.loss={type: ppo_clip}", r"restart: learn\.loss ppo_clip .*likelihood or dpo_positive"),
        ("dvo", "learn.restart=true", r"restart: learn\.loss dvo .*likelihood or dpo_positive"),
        ("restem", "learn.max_ratio=2", r"restart: max_ratio compares with the sampling policy"),
        ("restem", "learn.importance_cap=2", r"restart: importance_cap compares with the sampling policy"),
        (
            "restem",
            "credit.advantage.threshold=1.5",
            r"credit\.advantage\.threshold 1\.5 exceeds the largest reward, 1",
        ),
        ("spo-chain", "credit.advantage={type: rejection}", r"credit\.advantage rejection keeps whole responses"),
        ("pav", "rollout.engine={type: vllm}", r"credit\.value\.prover: .* set rollout\.engine\.servers"),
        ("pav", "credit.advantage={own: value, baseline: none}", r"credit\.advantage\.own value .*choose reward"),
        (
            "pav",
            "credit.advantage.baseline=parent",
            r"credit\.advantage.*: baseline parent does not go with own reward",
        ),
        ("dvo", "credit.advantage={type: gae, over: tokens}", r"credit\.advantage gae over tokens needs credit\.value"),
        ("restem", "learn={whitening: micro_batch, micro_batch: 2}", r"credit\.advantage rejection: learn\.whitening"),
    ],
)
def test_losses_and_credit_that_do_not_go_together_are_refused_by_their_keys(preset, override, says):
    with pytest.raises(ConfigError, match=says) as refusal:
        load_params(ROOT, preset, (override,))
    assert str(refusal.value).count("\n") <= 1


def test_values_of_a_cut_response_are_no_loss_of_whole_sequences():
    with pytest.raises(
        ConfigError, match=r"learn\.loss dvo .*credit\.partition cutpoints .*choose whole or fixed_tokens"
    ):
        load_params(
            ROOT, "spo-chain", ("learn.loss={type: dvo}", "learn.zero_advantage=keep", "credit.mask={type: all}")
        )


@pytest.mark.parametrize(
    ("overrides", "ok"),
    [
        (("verify.rewards.wrong=-1",), True),
        (("verify.rewards.wrong=-1", "credit.value={type: adaptive_monte_carlo}"), False),
        (("credit.value={type: adaptive_monte_carlo}",), True),  # several_answers, -2, is no outcome of this grader
        (("credit.value={type: adaptive_monte_carlo}", "verify.grader=minerva"), False),
    ],
)
def test_rewards_that_are_taken_for_probabilities_lie_between_0_and_1(overrides, ok):
    if ok:
        load_params(ROOT, "spo-chain", overrides)
    else:
        with pytest.raises(ConfigError, match=r"verify\.rewards and verify\.reward must lie in 0\.\.1"):
            load_params(ROOT, "spo-chain", overrides)


def test_the_exact_grader_may_still_be_called_by_its_old_name(caplog):
    with caplog.at_level("WARNING"):
        assert load_params(ROOT, None, ("verify.grader=corrected",)) == load_params(ROOT)
    assert "verify.grader: corrected is called exact now" in caplog.text


CRITIC = "credit.value={type: critic}"
GOLD = "credit.value={type: gold_answer}"
TOKENS = "credit.advantage={type: gae, lambda: 1, over: tokens}"
RESAMPLE = "rollout.resample={max_tokens: 1000}"


@pytest.mark.parametrize(
    ("preset", "overrides", "says"),
    [
        ("grpo", (CRITIC,), r"credit\.advantage group_normalized of whole responses .* credit\.value none"),
        ("grpo", (GOLD,), r"credit\.advantage group_normalized of whole responses .* credit\.value none"),
        (None, (GOLD, TOKENS), r"credit\.advantage gae over tokens needs credit\.value critic, not gold_answer"),
        (None, (GOLD, RESAMPLE), r"rollout\.resample drops .* credit\.value gold_answer learns"),
        (None, (GOLD, "verify.rewards.wrong=-1"), r"credit\.value takes rewards for probabilities"),
        ("grpo", ("credit.advantage={type: gae}",), r"credit\.advantage gae needs values: credit\.value"),
        (None, (TOKENS,), r"credit\.advantage gae over tokens needs credit\.value critic, not tree_mean"),
        ("spo-chain", (CRITIC, TOKENS), r"nothing of the cuts of credit\.partition cutpoints"),
        (None, (CRITIC, "policy.lora={rank: 4}"), r"credit\.value\.network copy .* which policy\.lora is to spare"),
        (None, (CRITIC, "run.iterations=4"), r"run\.iterations 4 ends before .*credit\.value\.warmup_iterations"),
        (
            None,
            ("credit.value={type: critic, warmup_iterations: 0}",),
            r"credit\.value\S*: warmup_iterations 0 .* to null",
        ),
        (None, ("credit.value={type: critic, clip: 0.2}",), r"credit\.value\S*: clip .* set loss to squared"),
        (
            "dapo",
            ("credit.value={type: critic, loss: cross_entropy}", "credit.advantage={type: gae}"),
            r"credit\.value\.loss cross_entropy .* verify\.rewards and verify\.reward",
        ),
        ("ppo", (RESAMPLE,), r"rollout\.resample drops .* credit\.value critic learns"),
        ("restem", (RESAMPLE,), r"rollout\.resample drops .* credit\.advantage rejection learns"),
        ("dvo", (RESAMPLE,), r"rollout\.resample drops .* learn\.loss dvo learns"),
        ("dpo-positive", ("learn.loss.margin=2.0",), r"learn\.loss\.margin 2 exceeds the range of rewards, 0 to 1"),
        (
            None,
            ("credit.value={type: critic, loss: squared}", "credit.advantage={type: best_of_k_progress}"),
            r"best_of_k_progress takes values for probabilities, .*credit\.value\.loss squared",
        ),
        (None, ("learn.normalization=constant",), r"normalization constant and episode_tokens go together"),
        (None, ("learn.episode_tokens=9",), r"normalization constant and episode_tokens go together"),
        (None, ("credit.advantage={type: gae, lambda: 1.5}",), r"credit\.advantage\.lambda: .*less than or equal to 1"),
    ],
)
def test_learned_values_and_losses_that_do_not_fit_are_refused_by_key(preset, overrides, says):
    with pytest.raises(ConfigError, match=says):
        load_params(ROOT, preset, overrides)


@pytest.mark.parametrize("value", [CRITIC, GOLD])
def test_computed_values_go_with_trees_chains_and_whole_responses(value):
    for preset, advantage in ((None, "difference"), ("spo-chain", "gae"), ("grpo", "gae"), (None, "leave_one_out")):
        load_params(ROOT, preset, (value, f"credit.advantage={{type: {advantage}}}"))


def test_rewards_are_those_of_every_set_s_own_grader():
    """A published grader takes 2 from several answers; one set of a mixture that it grades is enough."""
    part = "{data: {problem_set: gsm8k}}, {grader: GRADER, data: {problem_set: arithmetic}}"
    for grader, shares in (("exact", True), ("minerva", False)):
        mixed = f"data={{problem_set: both, mixture: [{part.replace('GRADER', grader)}]}}"
        assert load_params(ROOT, "ppo", (mixed,)).rewards_are_shares == shares
        value = "credit.value={type: critic, loss: cross_entropy}"
        if not shares:
            with pytest.raises(ConfigError, match=r"credit\.value\.loss cross_entropy takes returns"):
                load_params(ROOT, "ppo", (mixed, value))


@pytest.mark.parametrize(
    "text", ["x" * 5000, "run.seed:" + "9" * 5000, "=" + "'" * 5000, "a" * 5000 + "=1", "\ud800" * 900]
)
def test_a_refusal_of_an_override_is_short_however_long_that_is(text):
    with pytest.raises(ConfigError) as refused:
        load_params(ROOT, None, (text,))
    assert str(refused.value).startswith("--set ") and len(str(refused.value)) < 900
