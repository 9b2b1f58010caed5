"""The page: escaped, deterministic, complete, and honest where something is missing."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from spo_core.evaluate.lighteval.details import Sample
from spo_core.observe.evaluations import EvaluatedCell
from spo_core.observe.formatting import number, one_line, probability, signed
from spo_core.observe.report import ReportInputs, curves, write_report
from spo_core.verify import Outcome
from tests.observe.examples import cell, chain_tree, decode, evaluation, full_tree, inputs, small_tree

EMPTY = ReportInputs("empty", {}, {}, [], [], {}, {}, [])
NO_CURVES = replace(inputs(), iterations=[], warmup=[])


class Page(HTMLParser):
    """Elements, shown text and node numbers of a page; refuses one that does not close what it opens."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.nodes: list[int] = []
        self.shown: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        if number := dict(attrs).get("data-node"):
            self.nodes.append(int(number))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th", "dt"):
            self.shown.append(" ")

    def handle_data(self, data):
        if "style" not in self.open:
            self.shown.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"[ \n]+", " ", "".join(self.shown))


def render(given: ReportInputs, folder: Path) -> tuple[str, Page]:
    path = write_report(given, folder, decode)
    assert path == folder / "index.html"
    source = path.read_text(encoding="utf-8")
    return source, Page(source)


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> tuple[str, Page]:
    """The page of ``inputs()``."""
    return render(inputs(), tmp_path_factory.mktemp("report"))


def hostile_cells(checkpoint: str, attack: str) -> dict[str, EvaluatedCell]:
    sample = Sample(f"a {attack}", 0, attack, f"b {attack}", f"c {attack}", Outcome.WRONG, "correct", 5)
    evaluated = cell([sample, replace(sample, question_id="other")], checkpoint, versions={attack: attack})
    return {evaluated.score.cell: evaluated}


def test_text_of_models_and_users_stays_text(tmp_path):
    attack = "</span><script>alert('x')</script><img src=x onerror=y>"
    hostile = replace(
        NO_CURVES,
        title=attack,
        params={"run": {"name": attack, attack: 1}},
        provenance={"code_revision": attack},
        trees=[(*small_tree(attack)[:2], attack)],
        evaluations={"warmup": hostile_cells("warmup", attack), "final": hostile_cells("final", attack)},
        summary=inputs().summary | {"seconds": {attack: 1.0}},
    )
    source, page = render(hostile, tmp_path)
    assert "<script" not in source and "<img" not in source
    assert page.tags["script"] == page.tags["img"] == 0
    assert page.text.count(attack) >= 6, "the completion, the question, title, param, provenance, stage"
    shown = [cell for cell in page.shown if one_line(attack) in cell]
    assert len(shown) > 3, "question, gold and given answer of a disagreement, versions"


def test_equal_inputs_give_equal_bytes(tmp_path, full):
    again = write_report(inputs(), tmp_path / "elsewhere", decode)
    assert again.read_bytes() == full[0].encode()


def test_nothing_is_fetched(full):
    source, page = full
    addresses = set(re.findall(r"https?://[^\"' )<]+", source))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert page.tags["link"] == page.tags["script"] == 0
    assert set(re.findall(r"url\((.)", source)) <= {"#"}


def test_no_two_figures_share_an_id(full):
    source, _ = full
    ids = Counter(re.findall(r'\bid="([^"]*)"', source))
    assert [name for name, count in ids.items() if count > 1] == []


def test_numbers_of_the_inputs_appear_with_three_decimals(full):
    source, page = full
    text = page.text
    for checkpoint in ("warmup", "final"):
        score = inputs().evaluations[checkpoint]["arithmetic-long"].score
        assert f"{number(score.accuracy)} ± {number(score.standard_error)}" in text
        for share in (score.truncated, score.no_answer, score.unparsable, score.timeout, score.majority):
            assert number(share) in text
        assert number(score.tokens.mean, 1) in text
    assert "400\u202f000 tokens" in text and "context long of at most 80 tokens" in text
    for expected in ("4.125", "0.081", "3.375", "33.0", "71.2", "333.2", "learn.learning_rate", "0.0003", "0123abcd"):
        assert expected in text, expected
    assert text.count("3f8a" * 16) == 1 and text.count("0.13.0") == 1, "what is equal in all cells stands once"
    assert source.count("<figure>") == 9
    for label in (
        "generated tokens",
        "Warm-up loss",
        "Clip fraction",
        "KL to the",
        "Gradient norm",
        "tokens in the mask",
        "timed out",
    ):
        assert label in text, label


def test_a_full_tree_draws_every_node_once_in_under_a_second(tmp_path):
    given = replace(EMPTY, trees=[full_tree()])
    started = time.process_time()
    path = write_report(given, tmp_path, decode)
    assert time.process_time() - started < 1.0
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    assert sorted(page.nodes) == list(range(259))
    assert page.tags["details"] == 6 + 36
    assert source.count("<details open>") == 2
    assert "216 responses" in page.text and "258 segments" in page.text


def test_a_fan_of_value_rollouts_is_a_count(tmp_path):
    _, page = render(replace(EMPTY, trees=[chain_tree()]), tmp_path)
    assert sorted(page.nodes) == [0, 1, 2, 3, 4]
    assert "9 value rollouts, 4 correct, 5 wrong" in page.text
    assert "9 value rollouts, 7 correct, 2 wrong" in page.text
    assert "2 segments more, then correct" in page.text
    assert "2 responses, 1 correct" in page.text and "18 value rollouts" in page.text
    assert "v1" not in page.text


def test_probabilities_and_line_breaks_show(tmp_path):
    source, page = render(replace(EMPTY, trees=[small_tree("2\n")]), tmp_path)
    assert 'title="probability 0.607">2</span>' in source
    assert "1+1=?⏎" in page.text and "2⏎" in page.text


def test_missing_inputs_are_said_to_be_missing(tmp_path):
    _, page = render(EMPTY, tmp_path)
    for expected in (
        "There is no evaluation before or after training, so this page claims no change.",
        "There is no evaluation of the warmup checkpoint.",
        "There is no evaluation of the final checkpoint.",
        "No iteration of training was recorded.",
        "No step of the warm-up was recorded.",
        "No times were recorded.",
        "No sampled tree was given.",
        "No params were given.",
    ):
        assert expected in page.text


def test_one_evaluation_is_enough(tmp_path):
    summary = {key: value for key, value in inputs().summary.items() if "before" not in key}
    final = evaluation("final", 0.7)
    _, page = render(replace(NO_CURVES, summary=summary, evaluations={"final": final}), tmp_path)
    score = final["arithmetic-long"].score
    assert "There is no evaluation before training, so this page claims no change." in page.text
    assert "There is no evaluation of the warmup checkpoint." in page.text
    assert f"{number(score.accuracy)} ± {number(score.standard_error)}" in page.text
    assert "Change from warmup" not in page.text


def test_iterations_without_an_update_are_left_out_of_its_curves():
    rows = [{"iteration": 1, "train/kl": 0.1}, {"iteration": 2}, {"iteration": 3, "train/kl": 0.3}]
    params = {"learn": {"kl": {"type": "penalty", "estimator": "k1"}}}
    (svg,) = curves(replace(EMPTY, iterations=rows, params=params))
    assert svg.count("<use") == 2 and "KL to the reference policy (k1)" in svg


@pytest.mark.parametrize("params", [{}, {"learn": {"kl": {"type": "none"}}}])
def test_kl_without_a_reference_policy_is_not_drawn(params):
    """Rows of earlier versions have a KL of 0 there."""
    rows = [{"iteration": 1, "train/kl": 0.0}]
    assert list(curves(replace(EMPTY, iterations=rows, params=params))) == []


def test_a_reward_at_an_unknown_second_is_not_drawn():
    rows = [{"iteration": 1, "rollout/reward": 0.5}, {"iteration": 2, "rollout/reward": 0.6, "timing/train": 2.0}]
    (svg,) = curves(replace(EMPTY, iterations=rows))
    assert "seconds of all steps" in svg and svg.count("<use") == 1


def test_numbers_are_aligned_and_honest():
    assert number(float("nan")) == number(None) == "–"
    assert number(1234567.8912) == "1\u202f234\u202f567.891"
    assert (signed(0.25), signed(-0.25), signed(-0.0001), signed(0.0)) == (
        "+0.250",
        "\N{MINUS SIGN}0.250",
        "0.000",
        "0.000",
    )
    assert (probability(0.0004), probability(0.01), probability(None)) == ("< 0.001", "0.010", "–")


def test_a_line_stays_one_line():
    assert one_line("a\nb\tc") == "a⏎b⇥c"
    assert one_line(None) == "–" and one_line("") == ""
    assert one_line("\u202eabc\x00\u2028") == "\ufffdabc\ufffd\ufffd"
    assert len(one_line("x" * 100_000)) == 60 and one_line("x" * 60) == "x" * 60
