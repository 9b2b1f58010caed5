"""The example grid of docs/laboratory.md is read as the page says."""

from __future__ import annotations

import re

from spo_core.analysis.candidates import GROUP, read_candidates, reference_of, sampling
from spo_core.analysis.sketch import WIDTH
from spo_core.config import load_params
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "laboratory.md").read_text(encoding="utf-8")


def test_the_grid_is_read(tmp_path):
    (grid,) = re.findall(r"^```yaml\n# grid\.yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "grid.yaml").write_text(grid)
    found = {c.name: c for c in read_candidates(ROOT, (), tmp_path / "grid.yaml")}
    assert list(found) == ["3-3-3", "4-4-4", "pairs", "no-mask"]
    assert found["3-3-3"].params == load_params(ROOT) and found["3-3-3"].described.startswith("3-3-3, 2 first;")
    assert found["4-4-4"].params.rollout.branch_factors == (4, 4, 4)
    assert found["pairs"].preset == "grpo" and found["pairs"].params.rollout.branch_factors == (2,)
    assert sampling(found["3-3-3"]) == sampling(found["no-mask"]) != sampling(found["4-4-4"])


def test_numbers_of_the_page_are_those_of_the_code():
    assert f"{WIDTH:,} numbers" in PAGE and GROUP == 8 and "groups of eight" in PAGE
    assert len(PAGE.split()) < 1250
    plain = reference_of(read_candidates(ROOT, ("default",))[0]).described
    assert plain == "8; whole, none, leave_one_out, all" and "leave one out, no mask" in PAGE


def test_its_columns_are_those_of_the_report():
    template = (ROOT / "spo_core" / "observe" / "templates" / "analysis_sections.html").read_text()
    headings = set(re.findall(r"<th[^>]*>([A-Z][^<{]*)</th>", template))
    columns = [part.strip() for cell in re.findall(r"^\| ([^|]+) \|", PAGE, re.MULTILINE) for part in cell.split(",")]
    for column in columns:
        assert column in ("column", "Silent", "Seconds") or column in headings, column
