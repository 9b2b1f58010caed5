"""Comparisons: what is refused, what can be forced, and that the figures are those of the pairs."""

from __future__ import annotations

import io
import random
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from spo_core.errors import SPOError
from spo_core.evaluate import uncertainty
from spo_core.evaluate.comparison import ComparisonError, compare, comparison_table, differences
from spo_core.evaluate.lighteval.details import Sample, read_details, write_details
from spo_core.evaluate.result import CellScore, Protocol, Tokens
from spo_core.verify import Outcome

PROTOCOL = Protocol(
    problem_set="math",
    context_length=2048,
    questions=2,
    samples=1,
    temperature=0.6,
    top_p=0.95,
    prompt_digest="a" * 64,
    answer_digest="b" * 64,
    grader="exact",
    engine="vllm",
    dtype="bfloat16",
    versions={"torch": "2.13.0", "vllm": "0.32.0"},
)
OTHER = {
    "problem_set": "aime24",
    "context_length": 4096,
    "questions": 3,
    "samples": 4,
    "temperature": 1.0,
    "top_p": 1.0,
    "prompt_digest": "c" * 64,
    "answer_digest": "d" * 64,
    "grader": "minerva",
    "engine": "transformers",
    "dtype": "float32",
    "versions": {"torch": "2.14.0", "sympy": "1.14"},
}


def evaluated(model: str, table, **protocol) -> tuple[CellScore, list[Sample]]:
    """A score and its samples from rewards of 0 and 1, (questions, samples)."""
    rewards = np.asarray(table)
    samples = [
        Sample(f"q{q}", s, "", "7", "7", Outcome.CORRECT if right else Outcome.WRONG, None, 5)
        for (q, s), right in np.ndenumerate(rewards)
    ]
    means = rewards.mean(axis=1)
    score = CellScore(
        model=model,
        model_digest=model,
        suite="long-cot",
        cell="math-2k",
        context="2k",
        accuracy=float(means.mean()),
        standard_error=uncertainty.standard_error(means),
        interval=None,
        majority=0.0,
        truncated=0.0,
        no_answer=0.0,
        unparsable=0.0,
        timeout=0.0,
        tokens=Tokens(5.0, 5.0, 5.0, 5, 5.0),
        cross_check=None,
        protocol=replace(PROTOCOL, questions=rewards.shape[0], samples=rewards.shape[1], **protocol),
        lighteval_prompt_hash="3ceaaade5cf43911",
        seed=0,
        seconds=1.0,
        generated_tokens=5 * rewards.size,
    )
    return score, samples


def compared(a, b, **options):
    return compare(*a, *b, **options)


def test_equal_protocols_do_not_differ():
    assert differences(PROTOCOL, replace(PROTOCOL, versions=dict(reversed(PROTOCOL.versions.items())))) == []


@pytest.mark.parametrize("field", [field.name for field in fields(Protocol)])
def test_every_field_that_differs_has_a_line_that_says_how(field):
    lines = differences(PROTOCOL, replace(PROTOCOL, **{field: OTHER[field]}))
    if field == "versions":
        assert lines == [
            "versions.sympy: none and 1.14",
            "versions.torch: 2.13.0 and 2.14.0",
            "versions.vllm: 0.32.0 and none",
        ]
    else:
        (line,) = lines
        assert line.startswith(f"{field}: ") and str(getattr(PROTOCOL, field))[:12] in line
        assert str(OTHER[field])[:12] in line


def test_all_that_differs_is_listed():
    assert len(differences(PROTOCOL, Protocol(**OTHER))) == len(fields(Protocol)) - 1 + 3


def test_other_protocols_are_refused_and_forced_openly():
    a = evaluated("warmup", [[1], [0], [0]])
    b = evaluated("final", [[1], [1], [0]], temperature=1.0, engine="transformers")
    with pytest.raises(ComparisonError) as refused:
        compared(a, b)
    lines = ("temperature: 0.6 and 1.0", "engine: vllm and transformers")
    assert all(line in str(refused.value) for line in lines) and "--force" in str(refused.value)
    assert isinstance(refused.value, SPOError)
    forced = compared(a, b, force=True)
    assert set(forced.forced_over) == set(lines)
    assert forced.difference == pytest.approx(1 / 3)
    assert forced.verdict == "protocols differ"
    assert compared(a, a, force=True).forced_over == ()


def test_other_questions_are_refused_even_by_force():
    a, (score, samples) = evaluated("warmup", [[1], [0]]), evaluated("final", [[1], [0]])
    renamed = [replace(sample, question_id=sample.question_id.replace("q1", "q9")) for sample in samples]
    for b in ((score, renamed), evaluated("final", [[1], [0], [0]])):
        with pytest.raises(ComparisonError, match="same questions"):
            compared(a, b, force=True)


def test_a_stale_details_file_is_refused_even_by_force():
    a, (score, samples) = evaluated("warmup", [[1, 1], [0, 1]]), evaluated("final", [[1, 0], [0, 0]])
    turned = [replace(samples[0], outcome=Outcome.WRONG), *samples[1:]]
    for stale, reason in (
        (turned, "accuracy of 0.0000, its score says 0.2500"),
        (samples[:-1], "completions"),
        (samples[:2], "completions"),
        ([], "completions"),
        (samples * 2, "completions"),
    ):
        for pair in ((a, (score, stale)), ((score, stale), a)):
            with pytest.raises(ComparisonError, match=reason) as refused:
                compared(*pair, force=True)
            assert "final (math-2k)" in str(refused.value)


def test_by_hand():
    """McNemar: 8 won, 1 lost: 2 * (1 + 9) / 2^9."""
    a, b = [[0]] * 8 + [[1]] + [[1]] * 11, [[1]] * 8 + [[0]] + [[1]] * 11
    found = compared(evaluated("warmup", a), evaluated("final", b))
    assert (found.model_a, found.model_b, found.cell) == ("warmup", "final", "math-2k")
    assert (found.accuracy_a, found.accuracy_b, found.questions) == (0.6, 0.95, 20)
    assert (found.wins, found.losses, found.ties) == (8, 1, 11)
    assert found.difference == pytest.approx(0.35)
    assert found.standard_error == pytest.approx(np.std([1] * 8 + [-1] + [0] * 11, ddof=1) / 20**0.5)
    assert found.p_value == pytest.approx(20 / 512)
    assert found.verdict == "b higher" and found.forced_over == ()


def test_mcnemar_only_where_both_were_asked_once():
    once, twice = evaluated("warmup", [[1], [0]]), evaluated("final", [[1, 1], [0, 1]])
    assert compared(once, once).p_value == 1.0
    assert compared(twice, twice).p_value is None
    assert compared(once, twice, force=True).p_value is None


tables = st.tuples(st.integers(2, 12), st.integers(1, 4)).flatmap(
    lambda shape: st.tuples(*[st.lists(st.lists(st.booleans(), min_size=shape[1], max_size=shape[1]),
                                       min_size=shape[0], max_size=shape[0])] * 2)
)  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(tables, st.integers(0, 99))
def test_mirrored_in_any_order_and_adds_up(pair, seed):
    (score_a, samples_a), (score_b, samples_b) = evaluated("a", pair[0]), evaluated("b", pair[1])
    there = compare(score_a, samples_a, score_b, samples_b)
    shuffled = random.Random(seed).sample(samples_a, len(samples_a))
    assert compare(score_a, shuffled, score_b, samples_b) == there
    assert there.difference == pytest.approx(score_b.accuracy - score_a.accuracy, abs=1e-12)
    assert there.wins + there.losses + there.ties == there.questions == len(pair[0])
    if there.questions < 6:
        assert there.interval is None
    else:
        assert there.interval[0] - 1e-12 <= there.difference <= there.interval[1] + 1e-12

    back = compare(score_b, samples_b, score_a, samples_a)
    assert (back.difference, back.wins, back.losses) == (-there.difference, there.losses, there.wins)
    assert (back.p_value, back.standard_error) == (there.p_value, there.standard_error)
    if there.interval is not None:
        assert back.interval == pytest.approx((-there.interval[1], -there.interval[0]), abs=1e-12)
    assert back.told_apart == there.told_apart
    if there.told_apart:
        assert {there.verdict, back.verdict} == {"b higher", "b lower"} and there.wins + there.losses >= 6


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ([[0, 0]] * 5, [[1, 1]] * 5, "not told apart"),  # too few questions, whatever the interval says
        ([[0, 0]] * 6, [[1, 1]] * 6, "b higher"),
        ([[1, 1]] * 6, [[0, 1]] * 6, "b lower"),
        ([[0]] * 5 + [[1]] * 25, [[1]] * 30, "not told apart"),  # p = 2 / 2^5
        ([[0]] * 6 + [[1]] * 24, [[1]] * 30, "b higher"),
        ([[1]] * 10, [[1]] * 10, "not told apart"),
        ([[0, 1]], [[1, 1]], "not told apart"),  # one question
    ],
)
def test_the_verdict_claims_no_more_than_the_figures(a, b, verdict):
    assert compared(evaluated("warmup", a), evaluated("final", b)).verdict == verdict


def test_equal_policies_are_rarely_told_apart():
    """Scores of one policy, sampled twice: at most about one in twenty is called a difference."""
    rng = np.random.default_rng(0)
    chances = rng.random((40, 1))
    for samples in (1, 4):
        found = [
            compared(*(evaluated(name, rng.random((40, samples)) < chances) for name in ("a", "b"))).told_apart
            for _ in range(60)
        ]
        assert sum(found) <= 8  # 60 * 0.05 = 3, and three standard deviations


def test_the_table_has_every_figure_and_what_was_forced():
    a, b = evaluated("[bold]warmup", [[0]] * 8 + [[1]] * 12), evaluated("final", [[1]] * 20, temperature=1.0)
    same = evaluated("final", [[1]] * 20)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(comparison_table([compared(a, same), compared(a, b, force=True)]))
    text = console.export_text()
    for words in ("[bold]warmup", "60.0%", "100.0%", "+40.0 ± 11.2", "0.0078", "8, 0, 12", "b higher"):
        assert words in text
    assert "protocols differ" in text and "In spite of temperature: 0.6 and 1.0." in text
    Console(file=open("/dev/null", "w")).print(comparison_table([]))  # noqa: SIM115


def test_details_on_disk_compare_like_those_in_memory(tmp_path):
    (score_a, samples_a), b = (
        evaluated("warmup", [[1, 0], [0, 0], [1, 1]]),
        evaluated("final", [[1, 1], [0, 1], [1, 0]]),
    )
    write_details(tmp_path / "a.parquet", samples_a)
    score = CellScore.from_json(score_a.to_json())
    assert compare(score, read_details(tmp_path / "a.parquet"), *b) == compare(score_a, samples_a, *b)
