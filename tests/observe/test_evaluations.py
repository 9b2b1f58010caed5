"""The section on evaluation: only what compares is compared, and every disagreement of the graders can be read."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from spo_core.evaluate.comparison import LEVEL
from spo_core.evaluate.lighteval.details import Sample
from spo_core.observe import evaluation_section
from spo_core.observe.evaluation_section import disagreements, facts, published_rows, section
from spo_core.observe.evaluations import (
    Evaluations,
    compare_cells,
    headline_cell,
    verdict,
)
from spo_core.observe.formatting import number, one_line, signed
from spo_core.observe.report import ReportInputs
from spo_core.verify import Outcome
from tests.observe.examples import cell, changed, completions, evaluation
from tests.observe.test_report import EMPTY, Page, render

LONG = "arithmetic-long"
MATH_HASH = "3ceaaade5cf43911"  # of the published prompts


def pair(before: float = 0.4, after: float = 0.7) -> dict:
    return {"warmup": evaluation("warmup", before), "final": evaluation("final", after)}


def page_of(evaluations: Evaluations, folder, **more) -> Page:
    given: ReportInputs = replace(EMPTY, evaluations=evaluations, **more)
    return render(given, folder)[1]


def said(evaluations: Evaluations) -> str:
    """The verdict on the longest context."""
    return section(evaluations).verdict


def test_the_change_is_paired_by_question(tmp_path):
    evaluations = pair()
    means = {
        name: np.array([s.correct for s in evaluated[LONG].samples], float).reshape(50, 4).mean(axis=1)
        for name, evaluated in evaluations.items()
    }
    by_hand = means["final"] - means["warmup"]
    error = by_hand.std(ddof=1) / np.sqrt(50)
    assert f"Accuracy rose by {number(by_hand.mean())} ± {number(error)} (95 % interval" in said(evaluations)
    text = page_of(evaluations, tmp_path).text
    assert f"{signed(by_hand.mean())} ± {number(error)}" in text
    counts = [int(np.sum(by_hand > 0)), int(np.sum(by_hand < 0)), int(np.sum(by_hand == 0))]
    assert re.search(r"\s+".join(map(str, counts)), text) and sum(counts) == 50
    assert text.count(" rose ") == 3, "the verdict and both cells"


def test_a_policy_beside_itself_is_not_told_apart():
    same = pair(0.5, 0.5)
    assert "Accuracy changed by 0.000 ± 0.000" in said(same) and "does not tell the policies apart" in said(same)


def test_a_fall_is_called_one():
    assert said(pair(0.7, 0.4)).startswith("Accuracy fell by 0.")


@pytest.mark.parametrize(("wins", "told"), [(3, False), (4, False), (12, True)])
def test_a_question_asked_once_needs_the_exact_test_too(wins, told):
    def once(name: str, right: int):
        rows = [(Outcome.CORRECT if i < right else Outcome.WRONG) for i in range(30)]
        return {LONG: cell([Sample(f"q{i}", 0, "", "1", "1", o, None, 9) for i, o in enumerate(rows)], name)}

    evaluations = {"warmup": once("warmup", 5), "final": once("final", 5 + wins)}
    change = compare_cells(evaluations)[LONG].comparison
    assert change.p_value == pytest.approx(2 * 0.5**wins) and (change.p_value <= LEVEL) == told == change.told_apart
    assert ("rose" in said(evaluations)) == told and "McNemar's p" in said(evaluations)


def test_a_single_question_claims_nothing():
    one = {
        name: {LONG: cell(completions(seed, 0.5, questions=1), name)} for seed, name in enumerate(("warmup", "final"))
    }
    assert "may be chance" in said(one)


@pytest.mark.parametrize(
    "protocol",
    [
        {"prompt_digest": "00"},
        {"answer_digest": "00"},
        {"temperature": 0.6},
        {"context_length": 96},
        {"grader": "lenient"},
        {"engine": "vllm"},
        {"versions": {"lighteval": "9"}},
    ],
)
def test_cells_measured_differently_are_not_compared(tmp_path, protocol):
    evaluations = pair()
    evaluations["final"][LONG] = changed(evaluations["final"][LONG], **protocol)
    compared = compare_cells(evaluations)
    assert compared[LONG].comparison is None and len(compared[LONG].reasons) >= 1
    assert compared["arithmetic-short"].comparison is not None, "each cell stands for itself"
    text = page_of(evaluations, tmp_path).text
    assert "claims no change: " + "; ".join(compared[LONG].reasons) in text and "Accuracy rose" not in text
    assert "not compared: " + compared[LONG].reasons[0] in text


def test_completions_of_another_score_are_not_compared():
    evaluations = pair()
    stale = replace(evaluations["final"][LONG], samples=evaluations["warmup"][LONG].samples)
    evaluations["final"][LONG] = stale
    (reason,) = compare_cells(evaluations)[LONG].reasons
    assert "evaluate it again" in reason and "claims no change" in said(evaluations)


def test_a_cell_evaluated_after_training_alone_has_no_change():
    evaluations = pair()
    del evaluations["warmup"]["arithmetic-short"]
    assert "not evaluated" in compare_cells(evaluations)["arithmetic-short"].reasons[0]


def test_the_headline_is_the_longest_context_of_the_first_problem_set():
    several = {
        c.score.cell: c
        for c in (
            cell(completions(0, 0.5), problem_set="math", context="2k", context_length=2048),
            cell(completions(0, 0.5), problem_set="math", context="4k", context_length=4096),
            cell(completions(0, 0.5), problem_set="aime24", context="32k", context_length=32768),
        )
    }
    assert headline_cell(several) == "math-4k"


class Lines(Page):
    """Also the cells of table rows within <details>."""

    def __init__(self, source: str) -> None:
        self.rows: list[list[str]] = []
        super().__init__(source)

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        if tag == "tr" and "details" in self.open:
            self.rows.append([])

    def handle_data(self, data):
        super().handle_data(data)
        if "details" in self.open and self.open[-1] == "td":
            self.rows[-1].append(data)


def lines_of(evaluations: Evaluations, folder) -> list[list[str]]:
    source, _ = render(replace(EMPTY, evaluations=evaluations), folder)
    return [row for row in Lines(source).rows if row]


def test_the_lines_are_exactly_the_samples_that_disagree(tmp_path):
    evaluations = pair()
    expected = []
    for name in ("arithmetic-short", LONG):
        for checkpoint in evaluations:
            differ = [
                s
                for s in evaluations[checkpoint][name].samples
                if (s.outcome is Outcome.CORRECT) != (s.lighteval == "correct")
            ]
            last = [s for s in differ if s.outcome is Outcome.TRUNCATED]
            expected += [s for s in differ if s not in last] + last
    shown = lines_of(evaluations, tmp_path)
    assert [(row[0], row[1], row[2]) for row in shown] == [(s.question_id, str(s.sample), s.gold) for s in expected]
    assert [row[3:] for row in shown] == [
        [one_line(s.given), s.outcome.value.replace("_", " "), s.lighteval] for s in expected
    ]
    for found in disagreements(evaluations):
        check = found.evaluated.score.cross_check
        assert (found.count, found.truncated) == (check.disagreements, check.truncated_disagreements)


def test_a_long_list_is_cut_and_says_where_the_rest_is(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation_section, "MOST_LINES", 3)
    evaluations = {"final": {LONG: cell(completions(5, 0.5))}}
    (found,) = disagreements(evaluations)
    assert found.count > 3 and len(lines_of(evaluations, tmp_path)) == 3
    text = page_of(evaluations, tmp_path).text
    assert f"The first 3 of {found.count}; all completions are in metrics/evaluate/final/{LONG}.parquet." in text
    monkeypatch.undo()
    assert "The first" not in page_of(evaluations, tmp_path).text and found.count < evaluation_section.MOST_LINES


def test_graders_that_agree_and_those_that_were_not_asked(tmp_path):
    agreed = [replace(s, lighteval="correct" if s.correct else "wrong") for s in completions(3, 0.5)]
    page = page_of({"final": {LONG: cell(agreed)}}, tmp_path)
    assert page.tags["details"] == 0 and "lighteval's" in page.text
    unasked = [replace(s, lighteval=None) for s in agreed]
    page = page_of({"final": {LONG: cell(unasked)}}, tmp_path)
    assert page.tags["details"] == 0 and f"lighteval has no metric for the answers of {LONG}." in page.text


def test_hostile_completions_stay_text(tmp_path):
    attack = "</td></table></details><script>alert(1)</script>\n<img src=x onerror=y>\u202e\u2028" + "x" * 10_000
    sample = Sample(attack, 0, attack, attack, attack, Outcome.WRONG, "correct", 5)
    hostile = {"final": {LONG: cell([sample, replace(sample, sample=1)])}}
    source, _ = render(replace(EMPTY, evaluations=hostile), tmp_path)
    assert "<script" not in source and "<img" not in source and "\u202e" not in source
    rows = lines_of(hostile, tmp_path)
    assert len(rows) == 2 and rows[0][0] == rows[0][2] == rows[0][3] == one_line(attack)


def math(prompt_hash: str = MATH_HASH, **protocol) -> dict:
    settings = {"temperature": 0.6, "top_p": 0.95, "problem_set": "math", "context": "2k", "context_length": 2048}
    drawn = [replace(s, lighteval="wrong") if s.lighteval == "timeout" else s for s in completions(4, 0.7, 500, 1)]
    return {"final": {"math-2k": cell(drawn, prompt_hash=prompt_hash, **settings | protocol)}}


def test_published_figures_stand_beside_the_cells_they_are_of(tmp_path):
    text = page_of(math(), tmp_path).text
    check = math()["final"]["math-2k"].score.cross_check
    off = (check.accuracy - 0.736) / np.hypot(check.standard_error, 0.0197)
    assert "Beside published figures" in text
    assert re.search(
        rf"SPO-tree 6-6-6.* 0\.736 ± 0\.020 {number(check.accuracy)} ± .* {re.escape(signed(off, 1))}", text
    )
    assert "Beside published figures" not in page_of({"final": evaluation("final", 0.7)}, tmp_path).text
    assert published_rows(math(context_length=2049)) == {} == published_rows({})


@pytest.mark.parametrize(
    ("given", "reason"), [({"prompt_hash": "feedfeedfeedfeed"}, "prompts"), ({"temperature": 1.0}, "temperature")]
)
def test_a_published_figure_measured_differently_has_reasons_instead(tmp_path, given, reason):
    rows = published_rows(math(**given))["math-2k"]
    assert all(any(reason in why for why in row.not_comparable) for row in rows if "SPO" in row.model)
    text = page_of(math(**given), tmp_path).text
    assert re.search(rf"SPO-tree 6-6-6.*not comparable: [^;]*{reason}", text)


def test_how_it_was_measured_stands_once_where_it_is_equal():
    evaluations = pair()
    named = {(fact.name, fact.of): fact.value for fact in facts(evaluations)}
    assert named["grader", ""] == "exact" and named["torch", ""] == "2.11.0"
    assert named["model digest", "warmup"] == "w" * 64 and named["model digest", "final"] == "f" * 64
    evaluations["final"][LONG] = changed(evaluations["final"][LONG], grader="lenient")
    named = {(fact.name, fact.of): fact.value for fact in facts(evaluations)}
    assert named["grader", f"{LONG}, final"] == "lenient" and named["grader", f"{LONG}, warmup"] == "exact"
    other = {"aime24-2k": cell(completions(0, 0.5), problem_set="aime24", context="2k", prompt_digest="ab")}
    named = {(f.name, f.of): f.value for f in facts({"final": evaluation("final", 0.5) | other})}
    assert named["prompt digest", "aime24"] == "ab" and named["prompt digest", "arithmetic"] == "3f8a" * 16


def test_the_best_policy_stands_below_the_others(tmp_path):
    evaluations = pair() | {"best": evaluation("best", 0.8)}
    rows = [(name, checkpoint) for name, checkpoint, _ in section(evaluations).rows]
    assert rows[:3] == [("arithmetic-short", name) for name in ("warmup", "final", "best")]
    assert verdict(evaluations, compare_cells(evaluations)[LONG]) == said(pair())
    best = evaluations["best"][LONG].score
    assert f"best {number(best.accuracy)} ± {number(best.standard_error)}" in page_of(evaluations, tmp_path).text
