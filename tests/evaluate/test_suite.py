"""Suites: which cells there are, and how each is asked."""

from __future__ import annotations

import pytest

from spo_core.config import load_params
from spo_core.errors import ConfigError
from spo_core.evaluate.cell import check_suite
from spo_core.evaluate.suite import cells, evaluated_set, find_cell, suite_questions
from spo_core.paths import Paths
from spo_core.problems import problem_set
from tests.conftest import ROOT, SHARED_DATA

needs_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="MATH-500 and AIME24 do not lie beside the checkout")


def test_the_published_suites():
    """Problem sets, contexts and sampling of docs/reference.md 3.4 and 5.1."""
    long = load_params(ROOT, suite="long-cot").evaluate
    assert long.problem_sets == ("math", "aime24") and list(long.contexts.values()) == [2048, 4096, 32768]
    assert (long.temperature, long.top_p, long.samples, long.template) == (0.6, 0.95, 1, "r1_boxed")
    short = load_params(ROOT, suite="short-cot").evaluate
    assert (short.problem_sets, short.samples, short.temperature) == (("gsm8k",), 16, 0.35)


def check_prompts_of_training(params):
    asked, trained = evaluated_set(params, params.data.problem_set), problem_set(params.data)
    assert asked.template == trained.template


@pytest.mark.parametrize(
    ("preset", "suite"), [("qwen1.5b-spo-tree-666", "long-cot"), ("rho1b-spo-chain-int5", "short-cot")]
)
def test_a_preset_names_its_suite(preset, suite):
    params = load_params(ROOT, preset)
    assert params.evaluate == load_params(ROOT, suite=suite).evaluate
    assert params.data.problem_set in {c.problem_set for c in cells(params)}, "judged on what it is trained on, too"
    check_prompts_of_training(params)


def test_what_a_preset_sets_holds_for_its_own_suite_alone():
    own = load_params(ROOT, "gsm8k-smoke").evaluate
    assert own.questions == 8 and list(own.contexts.values()) == [16, 32, 64]
    assert load_params(ROOT, "gsm8k-smoke", suite="short-cot").evaluate == load_params(ROOT, suite="short-cot").evaluate
    changed = load_params(ROOT, "gsm8k-smoke", ("evaluate.samples=2",), "short-cot").evaluate
    assert changed.samples == 2 and changed.contexts == {"1k": 1024}


def test_cells_are_sets_times_contexts():
    params = load_params(ROOT, suite="long-cot")
    names = [cell.name for cell in cells(params)]
    assert names == ["math-2k", "math-4k", "math-32k", "aime24-2k", "aime24-4k", "aime24-32k"]
    assert find_cell(params, "aime24-4k").context_length == 4096
    with pytest.raises(ConfigError, match="has no such cell, but math-2k, "):
        find_cell(params, "math-8k")
    assert [cell.name for cell in cells(load_params(ROOT))] == [
        "arithmetic-short",
        "arithmetic-medium",
        "arithmetic-long",
    ]


@needs_data
def test_every_set_is_asked_with_the_suite_s_template(tmp_path):
    sources = (f"evaluate.sources={{math: {SHARED_DATA / 'math500'}, aime24: {SHARED_DATA / 'aime24'}}}",)
    params = load_params(ROOT, None, sources, "long-cot")
    check_suite(params, own=False)
    for name, count in (("math", 500), ("aime24", 30)):
        assert len(suite_questions(params, Paths(tmp_path), name)) == count
        assert evaluated_set(params, name).template.name == "r1_boxed"


def test_a_run_s_own_policy_is_asked_as_in_training():
    params = load_params(ROOT, "rho1b-grpo", ("evaluate.template=math_task_boxed",))
    with pytest.raises(ConfigError, match="is not the template of training, math_task"):
        check_suite(params, own=True)


def test_contexts_beyond_the_run_s_own_policy_are_refused_and_others_not():
    with pytest.raises(ConfigError, match=r"exceeds policy.init.max_positions 256"):
        load_params(ROOT, None, ("evaluate.contexts.long=5000",))
    with pytest.raises(ConfigError, match=r"exceeds policy.init.max_positions 256"):
        load_params(ROOT, None, ("evaluate.suite=long-cot",))
    load_params(ROOT, suite="long-cot")
