"""The page and the table of an analysis: escaped, the same for equal inputs, and honest where nothing was measured."""

from __future__ import annotations

import copy
import io
import math
from contextlib import redirect_stdout

import numpy as np
import pytest

from spo_core.analysis.drift import Drift
from spo_core.analysis.efficiency import Estimate, Gradients, cosine, efficiency, gain
from spo_core.analysis.findings import Row, Values, as_json, recommend
from spo_core.analysis.found import Found
from spo_core.analysis.shape import shape
from spo_core.analysis.truth import State, calibration, error, ranking
from spo_core.analysis.warmed import CriticFound, Warming
from spo_core.observe import scores
from spo_core.observe.analysis_page import estimate, print_analysis, write_analysis
from tests.observe.examples import chain_tree, full_tree
from tests.observe.test_report import Page

NO_CUTS = np.zeros(0)
HOSTILE = '<script>alert("1")</script>&{{ 7*7 }}[bold]'


def gradients(rng: np.random.Generator, scale: float = 0.3) -> Gradients:
    vectors = (1 + scale * rng.normal(size=(30, 2, 8))).astype(np.float32)
    cost = rng.uniform(50, 90, 30)
    return Gradients(tuple(f"q{i}" for i in range(30)), vectors, cost, cost / 100, np.ones((30, 2), bool))


def values(rng: np.random.Generator) -> Values:
    states = [
        State(f"q{i // 2}", i // 2, i % 3 + 1, rng.random(), rng.random(), rng.random(), 0.001) for i in range(24)
    ]
    depths = {d: error([s for s in states if s.depth == d]) for d in (1, 2, 3)}
    thirds = dict.fromkeys(("first third", "second third", "last third"), error(states))
    thirds["last third"] = error([])
    return Values(error(states), depths, thirds, calibration(states), ranking(states), len(states))


def analysis(*names: str, states: int = 24, found: bool = True, scale: float = 0.3) -> dict:
    rng = np.random.default_rng(0)
    reference = gradients(rng)
    own = [gradients(rng, scale) for _ in names]
    effects = [efficiency(g) for g in own]
    e = Estimate(0.5, 0.1)
    rows = []
    for number, name in enumerate(names):
        tree, credit, _ = (full_tree if number % 2 else chain_tree)()
        gains = [gain(own[number], own[0], cost) for cost in ("tokens", "seconds")]
        rows.append(
            Row(
                name,
                f"6-2-2; {name}",
                effects[number],
                cosine(own[number], reference),
                *(gains if number else (None, None)),
                shape([(tree, credit)], NO_CUTS),
                values(rng) if states else None,
                Found(e, e, e, e, 5, 9) if found else None,
                CriticFound(Warming(2, 12_345, 0.1), e, 0.25, (0.4, 0.3, 0.2, math.nan)) if number == 1 else None,
            )
        )
    return {
        "name": f"of {names[0]}",
        "model": names[0],
        "start": names[-1],
        "drift": as_json(Drift(2.5, 0.01, e, Estimate(7.0, 0.3))) if found else None,
        "recommendations": recommend(rows),
        "candidates": as_json(rows),
        "sketch": {"width": 64, "relative_error": 0.0055},
        "amount": {"tokens": 100, "states": states, "rollouts": 64},
        "identity": {},
        "provenance": {"code_revision": "0" * 40, "uncommitted_changes": False},
    }


def rendered(given: dict, folder) -> tuple[str, Page]:
    path = write_analysis(given, folder)
    assert path == folder / "index.html"
    source = path.read_text(encoding="utf-8")
    return source, Page(source)


def printed(given: dict, width: int, monkeypatch) -> str:
    monkeypatch.setattr(scores, "LINE", width)
    with redirect_stdout(io.StringIO()) as output:
        print_analysis(given)
    return output.getvalue()


def test_a_critic_is_told_of_beside_the_tables(tmp_path, monkeypatch):
    """Whether states were valued or not; what warming took is said to be apart."""
    for states in (24, 0):
        given = analysis("default", "ppo", states=states)
        text = "ppo: its critic explains 0.50 ± 0.10 of the variance of returns, after 2 iterations of warm-up"
        assert text in rendered(given, tmp_path)[1].text and text in printed(given, 300, monkeypatch)
        assert "default: its critic" not in printed(given, 300, monkeypatch)


def test_names_stay_text(tmp_path, monkeypatch):
    source, page = rendered(analysis(HOSTILE, f"b{HOSTILE}"), tmp_path)
    assert page.tags["script"] == 0 and "<script" not in source
    assert page.text.count(HOSTILE) > 8
    assert HOSTILE.replace("[bold]", "") in printed(analysis(HOSTILE, "b"), 300, monkeypatch)
    assert "[bold]" in printed(analysis(HOSTILE, "b"), 300, monkeypatch)


def test_equal_inputs_equal_bytes_and_inputs_stay(tmp_path):
    given = analysis("default", "grpo")
    before = copy.deepcopy(given)
    first, again = rendered(given, tmp_path / "a")[0], rendered(analysis("default", "grpo"), tmp_path / "b")[0]
    assert first == again and given == before


def test_every_candidate_and_number_is_there(tmp_path):
    given = analysis("default", "grpo", "third")
    source, page = rendered(given, tmp_path)
    for own in given["candidates"]:
        e, v = own["efficiency"], own["values"]
        for shown in (e["per_token"], e["per_second"], e["within"], own["cosine"], v["error"], v["by_depth"]["2"]):
            assert estimate(shown) in page.text
        assert own["described"] in page.text and page.text.count(own["name"]) >= 5
    assert estimate(given["candidates"][1]["seconds_gain"]) in page.text
    assert all(line in page.text for line in given["recommendations"])
    assert page.tags["svg"] == 1 and "64 responses" in page.text and "0.55 %" in page.text
    assert not {"None", "nan", "inf", "Undefined"} & set(page.text.replace("<", " ").split())
    anchors = [part.split('"')[0] for part in source.split('href="#')[1:]]
    assert anchors and all(f'id="{anchor}"' in source for anchor in anchors)


def test_what_was_not_measured_is_said_to_be_missing(tmp_path):
    _, page = rendered(analysis("default", states=0, found=False), tmp_path)
    assert "No states were valued: --states is 0." in page.text and page.tags["svg"] == 0
    assert "This problem set does not know which step went wrong." in page.text
    given = analysis("grpo")
    for own in given["candidates"]:
        own["values"] = None
    assert "No candidate values states." in rendered(given, tmp_path)[1].text
    given = analysis("default", "grpo")
    given["candidates"][1]["values"] = None
    source, page = rendered(given, tmp_path)
    assert page.tags["svg"] == 1 and "No candidate values" not in source


def test_candidates_that_trained_nothing_have_dashes(tmp_path, monkeypatch):
    given = analysis("default", "grpo", scale=0.0)
    for own in given["candidates"]:
        own["efficiency"] |= {k: {"value": None, "error": None} for k in ("per_token", "per_second", "within")}
        own["cosine"] = own["found"] = None
        own["shape"]["silent_groups"] = own["shape"]["values"]["mean"] = None
        own["shape"]["advantages"]["percentiles"] = []
    _, page = rendered(given, tmp_path)
    assert page.text.count("\N{EN DASH}") > 8
    assert "\N{EN DASH}" in printed(given, 120, monkeypatch)


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_cuts_nothing(width, monkeypatch):
    given = analysis("default", "3-3-3-3-with-a-long-name", "spo-chain")
    text = printed(given, width, monkeypatch)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    names = "".join(line.split("  ")[0].strip() for line in text.splitlines()[5:])
    assert all(own["name"] in names for own in given["candidates"])
    flat = " ".join(text.split())
    for own in given["candidates"]:
        e = own["efficiency"]
        for shown in (e["per_token"], e["per_second"], own["cosine"], own["values"]["error"]):
            assert all(part in flat for part in estimate(shown).split(" ± "))
    assert all(line in flat for line in given["recommendations"])


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (12.345, 2.1, "12.3 ± 2.1"),
        (0.98765, 0.0123, "0.988 ± 0.012"),
        (1234.5, 210.0, "1234 ± 210"),
        (0.5, 0.0, "0.500 ± 0.000"),
        (2.5, None, "2.5"),
        (-0.25, 0.5, "-0.25 ± 0.50"),
    ],
)
def test_a_number_has_the_digits_of_its_error(value, error, shown):
    assert estimate({"value": value, "error": error}) == shown
    assert estimate(None) == estimate({"value": None, "error": None}) == "\N{EN DASH}"
    assert math.isclose(float(shown.split(" ")[0]), value, rel_tol=0.01)


def test_drift_is_shown_where_a_start_was_named(tmp_path, monkeypatch):
    given = analysis("ours", "theirs<b>")
    source, page = rendered(given, tmp_path)
    assert "From theirs<b> to ours" in page.text and "<b>" not in source and "7.00 ± 0.30 a response" in page.text
    assert "From theirs<b>: weights 2.5 apart (1.0%)" in " ".join(printed(given, 120, monkeypatch).split())
    without = analysis("ours", found=False)
    assert "From " not in rendered(without, tmp_path)[1].text and "From " not in printed(without, 120, monkeypatch)
