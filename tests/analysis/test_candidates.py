"""Candidates: named by presets and grids, alike in all that decides what is compared, with seeds of their own."""

from __future__ import annotations

import pytest
import yaml

from spo_core.analysis.candidates import (
    DEFAULT,
    REFERENCE,
    SHARED,
    Candidate,
    identity,
    own_seed,
    read_candidates,
    reference_of,
    sampling,
)
from spo_core.config import flatten, load_params
from spo_core.errors import ConfigError
from tests.conftest import ROOT

# a value for each of SHARED that params/ do not have
OTHER = {
    "data": "data.seed=5",
    "verify": "verify.seconds=9",
    "rollout.engine": "rollout.engine={type: vllm, dtype: float16}",
    "rollout.temperature": "rollout.temperature=0.7",
    "rollout.top_p": "rollout.top_p=0.9",
    "rollout.context_length": "rollout.context_length=90",
    "rollout.max_completion_tokens": "rollout.max_completion_tokens=40",
    "rollout.truncated": "rollout.truncated=grade",
    "rollout.max_concurrency": "rollout.max_concurrency=8",
    "learn.dtype": "learn.dtype=bfloat16",
    "learn.attention": "learn.attention=flex",
    "learn.gradient_checkpointing": "learn.gradient_checkpointing=true",
    "learn.max_tokens_per_forward": "learn.max_tokens_per_forward=999",
    "run.seed": "run.seed=4",
    "run.device": "run.device=cpu",
    "run.threads": "run.threads=7",
}
OWN = [
    "rollout.questions=6",
    "rollout.branch_factors=[3, 3]",
    "credit.partition={type: fixed_tokens, tokens: 7}",
    "credit.advantage={type: leave_one_out}",
    "credit.mask={type: all}",
    "learn.zero_advantage=keep",
]
MIXED = "data={problem_set: both, mixture: [{data: {problem_set: arithmetic}}, {data: {problem_set: point24}}]}"


def candidate(*overrides: str, name: str = "c") -> Candidate:
    return Candidate(name, load_params(ROOT, None, overrides))


def grid(folder, content) -> object:
    path = folder / "grid.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def test_presets_then_a_grid_and_overrides_for_all(tmp_path):
    rows = {"3-3": {"set": ["rollout.branch_factors=[3, 3]"]}, "chain.5": {"preset": "spo-chain", "set": OWN[-1:]}}
    found = read_candidates(ROOT, ["default", "grpo"], grid(tmp_path, rows), ["run.seed=9", "rollout.questions=6"])
    assert [(c.name, c.preset) for c in found] == [
        (DEFAULT, None),
        ("grpo", "grpo"),
        ("3-3", None),
        ("chain.5", "spo-chain"),
    ]
    both = ("run.seed=9", "rollout.questions=6")
    assert [c.params for c in found] == [
        load_params(ROOT, None, both),
        load_params(ROOT, "grpo", both),
        load_params(ROOT, None, (*both, "rollout.branch_factors=[3, 3]")),
        load_params(ROOT, "spo-chain", (*both, OWN[-1])),
    ]
    assert found[2].described == "3-3, 2 first; fixed_tokens 36, tree_mean, difference, low_probability 0.9"
    assert [c.batch_questions for c in found] == [3] * 4
    assert candidate("rollout.questions=1", "learn.optimizer_steps=1").batch_questions == 1


@pytest.mark.parametrize(
    ("presets", "content", "says"),
    [
        ((), None, "no candidate: name presets, or give --grid"),
        (("grpo", "grpo"), None, "a name is given twice"),
        (("gpro",), None, "no preset 'gpro'"),
        (("../spo-chain",), None, "names a folder"),
        (("grpo",), {"grpo": {}}, "grpo is taken"),
        ((), {REFERENCE: {}}, "reference is taken"),
        ((), {"a": {"set": [MIXED]}}, r"^a: data\.mixture: an analysis takes one problem set at a time"),
        ((), {"../../elsewhere": {}}, "'../../elsewhere' names a folder"),
        ((), {"": {}}, "'' names a folder"),
        ((), {"a": {"preset": "gpro"}}, "no preset 'gpro'"),
        ((), {"a": {"presets": "grpo"}}, r"a\.presets: Extra inputs"),
        ((), {"a": {"set": "run.seed=1"}}, r"a\.set: Input should be a valid list"),
        ((), {"a": {"set": ["rollout.branches=[3]"]}}, r"unknown key rollout\.branches"),
        ((), {}, "at least 1 item"),
        ((), [1], "valid dictionary"),
        ((), "a: {set: [", "not valid YAML"),
    ],
)
def test_refused_in_one_line(tmp_path, presets, content, says):
    with pytest.raises(ConfigError, match=says) as refusal:
        read_candidates(ROOT, presets, None if content is None else grid(tmp_path, content))
    assert str(refusal.value).count("\n") <= 1


def test_a_grid_that_is_no_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        read_candidates(ROOT, (), tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("key", SHARED)
def test_what_decides_the_question_is_shared(tmp_path, key):
    path = grid(tmp_path, {"other": {"set": [OTHER[key]]}})
    with pytest.raises(ConfigError, match=rf"other and default differ in {key}\b.*--set {key}"):
        read_candidates(ROOT, ["default"], path)
    both = read_candidates(ROOT, ["default"], grid(tmp_path, {"other": {}}), [OTHER[key]])
    assert identity(both[0]) == identity(both[1])


@pytest.mark.parametrize("override", OWN)
def test_what_a_candidate_is_may_differ_and_is_its_identity(tmp_path, override):
    one, other = read_candidates(ROOT, ["default"], grid(tmp_path, {"other": {"set": [override]}}))
    assert identity(one) != identity(other)


def test_every_key_of_params_is_shared_or_a_candidates_own():
    """Each entry of SHARED is a key or holds some; what an identity leaves out is what no sample or gradient sees."""
    base = candidate()
    keys, found = flatten(base.params.model_dump(mode="json")), identity(base)
    for part in SHARED:
        assert any(f"{key}.".startswith(f"{part}.") for key in keys), part
    own = flatten({name: found[name] for name in ("rollout", "credit", "learn")})
    for key, value in keys.items():
        assert (key in found["shared"]) == any(f"{key}.".startswith(f"{part}.") for part in SHARED), key
        assert found["shared"].get(key, value) == value
        if key.startswith(("data.", "verify.", "rollout.", "credit.")):
            assert key in found["shared"] or own[key] == value, key


def test_the_reference_is_plain_whatever_the_candidate_is():
    first, chain = candidate(), Candidate("chain", load_params(ROOT, "spo-chain", ("rollout.questions=32",)))
    params = reference_of(first).params
    assert reference_of(first).name == REFERENCE and params.rollout.branch_factors == (8,)
    kinds = (params.credit.partition, params.credit.value, params.credit.advantage, params.credit.mask)
    assert [kind.type for kind in kinds] == ["whole", "none", "leave_one_out", "all"]
    assert identity(reference_of(first)) == identity(reference_of(chain))
    assert identity(reference_of(first))["shared"] == identity(first)["shared"]


SAMPLED = ("rollout.questions", "rollout.branch_factors", "credit.partition")  # of the keys in OWN


@pytest.mark.parametrize("override", OWN)
def test_candidates_that_sample_alike_have_one_seed_whatever_their_names(override):
    """Their trees are the same, so only their credit differs."""
    base, other = candidate(), candidate(override, name="other")
    alike = not override.startswith(SAMPLED)
    assert (sampling(base) == sampling(other)) == (own_seed(base) == own_seed(other)) == alike
    assert own_seed(other) == own_seed(candidate(override)) != own_seed(candidate(override, "run.seed=1"))


def test_value_rollouts_are_part_of_what_is_sampled():
    chains = [load_params(ROOT, "spo-chain", (f"credit.value.rollouts={k}",)) for k in (2, 3)]
    assert own_seed(Candidate("c", chains[0])) != own_seed(Candidate("c", chains[1]))


def test_the_reference_shares_no_trees_with_a_candidate_that_is_the_same():
    """No estimate is compared with itself."""
    plain = reference_of(candidate())
    assert own_seed(plain) != own_seed(Candidate("mine", plain.params))
