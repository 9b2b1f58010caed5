"""The page quotes what the command prints, and the computation is sane at its ends."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from benchmarks import scaling
from spo_core.config import load_params
from spo_core.estimate.work import estimate
from tests.conftest import ROOT


def test_the_page_quotes_the_command():
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    quoted = page.partition("<!-- benchmarks.scaling -->\n")[2].partition("<!-- end -->")[0]
    assert quoted.strip().splitlines() == scaling.lines(ROOT)


@pytest.mark.parametrize("preset", scaling.PUBLISHED)
def test_more_gpus_never_sample_slower_and_each_range_is_one(preset):
    params, measured = load_params(ROOT, preset), scaling.read_measured(ROOT / scaling.RESULTS)
    found = estimate(params, 2048)
    took = [scaling.seconds(params, found, gpus, measured) for gpus in (1, 2, 8, 64, 512)]
    for one in took:
        assert one.total[0] > 0 and all(low <= high for low, high in (one.rollout, one.update, one.rest, one.total))
    for fewer, more in pairwise(took):
        assert fewer.rollout >= more.rollout and fewer.busy <= more.busy <= params.rollout.questions
    assert took[-2].rollout == took[-1].rollout, "no more GPUs than questions have anything to sample"
    slow_disk = scaling.seconds(params, found, 8, replace(measured, handed=measured.handed / 2))
    assert slow_disk.rest[1] > took[2].rest[1] and slow_disk.rollout == took[2].rollout
