"""Published scores: the numbers are those on record, and every row says what speaks against comparing it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib import resources

import pytest

from spo_core.evaluate.published_scores import beside, source
from spo_core.evaluate.result import CellScore, CrossCheck, Protocol, Tokens
from tests.conftest import ROOT

RECORD = ROOT.parent / "shared" / "reference" / "published.json"
NAMES = {"math_500": "math", "aime24": "aime24"}
HASHES = {"math": "3ceaaade5cf43911", "aime24": "84ff409b6bbf7cc0", "gsm8k": "0123456789abcdef"}
SUITES = {  # as in params/suites
    "math": {"questions": 500, "samples": 1, "temperature": 0.6, "top_p": 0.95},
    "aime24": {"questions": 30, "samples": 1, "temperature": 0.6, "top_p": 0.95},
    "gsm8k": {"questions": 1319, "samples": 16, "temperature": 0.35, "top_p": 1.0},
}
CHECK = CrossCheck(accuracy=0.75, standard_error=0.0194, disagreements=3, truncated_disagreements=2, timeouts=0)
OTHER_PROMPTS = {"DeepScaleR-1.5B-Preview", "STILL-3-1.5B-preview"}


def score(problem_set="math", context_length=2048, check: CrossCheck | None = CHECK, **changes) -> CellScore:
    protocol = Protocol(
        problem_set=problem_set,
        context_length=context_length,
        prompt_digest="a",
        answer_digest="b",
        grader="exact",
        engine="vllm",
        dtype="bfloat16",
        versions={},
        **SUITES[problem_set] | {k: v for k, v in changes.items() if k in SUITES["math"]},
    )
    return CellScore(
        model="final",
        model_digest="c",
        suite="suite",
        cell=f"{problem_set}-2k",
        context="2k",
        accuracy=0.7,
        standard_error=changes.get("standard_error", 0.02),
        interval=None,
        majority=0.7,
        truncated=0.1,
        no_answer=0.0,
        unparsable=0.0,
        timeout=0.0,
        tokens=Tokens(9.0, 9.0, 9.0, 9, 9.0),
        cross_check=None if problem_set == "gsm8k" else check,
        protocol=protocol,
        lighteval_prompt_hash=changes.get("lighteval_prompt_hash", HASHES[problem_set]),
        seed=0,
        seconds=1.0,
        generated_tokens=9,
    )


def shown(row) -> str:
    """The name that the record has for it."""
    return f"{row.model} ({row.hub})" if row.hub and row.hub.startswith("gyr66/") else row.model


@pytest.mark.skipif(not RECORD.is_file(), reason="the record of published figures is not here")
def test_every_number_is_the_one_on_record():
    record = json.loads(RECORD.read_text())
    for key, name in NAMES.items():
        lengths = {length for model in record[key].values() for length in model}
        assert lengths == {"2048", "4096", "32768"}
        for length in lengths:
            rows = {shown(row): (row.published, row.published_error) for row in beside(score(name, int(length)))}
            assert rows == {model: tuple(scores[length]) for model, scores in record[key].items()}
    figure = {model: value for model, value in record["gsm8k_rho_1.1b"].items() if model != "note"}
    rows = {row.model: (row.published, row.published_error) for row in beside(score("gsm8k", 1024))}
    assert rows == {model: (value, None) for model, value in figure.items()}


def test_package_data_is_found_beside_the_code():
    """Also once installed: hatchling packs whatever is in the packages."""
    assert resources.files("spo_core.evaluate").joinpath("published.json").is_file()
    assert "2505.23564" in source()


def test_published_errors_are_those_of_so_many_questions():
    """Binomial with ddof 1, as lighteval computes them; a slip in either number would show."""
    for name in NAMES.values():
        for length in (2048, 4096, 32768):
            for row in beside(score(name, length)):
                p, n = row.published, SUITES[name]["questions"]
                assert row.published_error == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)), abs=6e-4)
                assert p * n == pytest.approx(round(p * n), abs=0.02)  # whole questions


def test_differences_by_hand():
    """0.75 by lighteval's metric, which is the published grader; our own 0.7 plays no part."""
    rows = {row.model: row for row in beside(score())}
    spo = rows["SPO-tree 6-6-6"]
    assert (spo.ours, spo.ours_error, spo.published, spo.published_error) == (0.75, 0.0194, 0.736, 0.0197)
    assert spo.difference == pytest.approx(0.014, abs=1e-12)
    assert spo.standard_errors == pytest.approx(0.014 / 0.0276487, rel=1e-5)
    base = rows["DeepSeek-R1-Distill-Qwen-1.5B"]
    assert base.standard_errors == pytest.approx(0.184 / math.sqrt(0.0194**2 + 0.0222**2), rel=1e-12)
    assert not spo.not_comparable and not base.not_comparable


def test_values_of_the_figure_count_in_our_errors_alone():
    rows = {row.model: row for row in beside(score("gsm8k", 1024))}
    chain = rows["SPO-chain int5"]
    assert (chain.ours, chain.ours_error, chain.published_error) == (0.7, 0.02, None)
    assert chain.standard_errors == pytest.approx((0.7 - 0.567) / 0.02)
    assert "figure" in chain.note and "our standard errors alone" in chain.note
    ours = {reason for row in rows.values() for reason in row.not_comparable}
    assert any(r.startswith("other prompts") for r in ours) and "grader: exact here, gsm8k_strict there" in ours


@pytest.mark.parametrize(
    ("problem_set", "length"), [("math", 2047), ("math", 56), ("gsm8k", 2048), ("aime24", 1024), ("aime24", 65536)]
)
def test_lengths_that_were_not_published_have_no_rows(problem_set, length):
    assert beside(score(problem_set, length)) == []


def test_problem_sets_that_were_not_published_have_no_rows():
    ours = score()
    assert beside(replace(ours, protocol=replace(ours.protocol, problem_set="arithmetic"))) == []


@pytest.mark.parametrize("problem_set", ["math", "aime24"])
def test_models_with_prompts_of_their_own_do_not_compare(problem_set):
    for row in beside(score(problem_set)):
        assert len(row.not_comparable) == (row.model in OTHER_PROMPTS)
        assert all("prompts" in reason for reason in row.not_comparable)
    for row in beside(score(problem_set, lighteval_prompt_hash="feedfeedfeedfeed")):
        assert "feedfeedfeedfeed" in row.not_comparable[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"samples": 4}, "samples: 4 here, 1 there"),
        ({"temperature": 1.0}, "temperature: 1.0 here, 0.6 there"),
        ({"top_p": 1.0}, "top_p: 1.0 here, 0.95 there"),
        ({"questions": 20}, "questions: 20 here, 500 there"),
        ({"check": None}, "no verdicts of lighteval's metric, so ours is by grader exact"),
        ({"check": replace(CHECK, timeouts=6)}, "lighteval's metric did not finish with 6 of our completions"),
    ],
)
def test_what_was_measured_otherwise_says_so(change, reason):
    spo = next(row for row in beside(score(**change)) if row.model == "SPO-tree 6-6-6")
    assert spo.not_comparable == (reason,)


def test_without_verdicts_of_lighteval_ours_is_our_accuracy():
    assert {(row.ours, row.ours_error) for row in beside(score(check=None))} == {(0.7, 0.02)}


def test_without_any_error_there_is_no_ratio():
    for error in (None, 0.0):
        rows = {row.model: row for row in beside(score("aime24", check=replace(CHECK, standard_error=error)))}
        assert rows["DeepScaleR-1.5B-Preview"].standard_errors is None  # published as 0.000 ± 0.000
        assert (rows["GRPO"].standard_errors is None) == (error is None)
