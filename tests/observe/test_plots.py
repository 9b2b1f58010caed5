"""Curves as SVG."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

from spo_core.observe.plots import SERIES, ShortNumbers, curves_svg


def test_each_series_is_drawn_in_its_colour():
    series = {"spo-tree": [(0.0, 0.4), (1e6, 0.7)], "grpo": [(0.0, 0.4), (1e6, 0.6)]}
    svg = curves_svg(series, "generated tokens", "Reward")
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg") and root.get("aria-label") == "Reward against generated tokens"
    texts = {element.text for element in root.iter() if element.tag.endswith("text")}
    assert {"spo-tree", "grpo", "generated tokens", "Reward", "1.00M"} <= texts
    for colour in SERIES[:2]:
        assert f"stroke: var(--series-{SERIES.index(colour) + 1}, {colour})" in svg
    assert curves_svg(series, "generated tokens", "Reward") == svg


def test_names_stay_text():
    svg = curves_svg({"<b>$x$</b>": [(0, 1)], "_hidden": [(0, 2)]}, '"x"', "<y>")
    ElementTree.fromstring(svg)
    assert "&lt;b&gt;$x$&lt;/b&gt;" in svg and "<b>" not in svg


def test_points_that_are_not_finite_are_left_out():
    assert curves_svg({"a": [(0, 1), (1, math.nan), (2, 3)]}, "x", "y").count("<use") == 2
    ElementTree.fromstring(curves_svg({"a": []}, "x", "y"))


def test_tick_labels_share_unit_and_decimals():
    label = ShortNumbers().format_ticks
    assert label([0, 0.25, 0.5]) == ["0", "0.25", "0.50"]
    assert label([0, 500_000, 1_000_000]) == ["0", "0.5M", "1.0M"]
    assert label([0, 5_000, 10_000]) == ["0", "5k", "10k"]
    assert label([-2, 0, 900]) == ["\N{MINUS SIGN}2", "0", "900"]
