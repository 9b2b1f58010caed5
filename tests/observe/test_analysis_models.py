"""The page over several policies: a row for each candidate at each, escaped, the same for equal inputs."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import pytest

from spo_core.observe.analysis_models import checkpoint_rows, print_checkpoints, write_checkpoints
from tests.observe.test_analysis_page import HOSTILE, analysis


def found(*models: str, states: int = 24, drifted: bool = True) -> dict:
    analyses = [analysis("6-2-2", HOSTILE, states=states, found=drifted) | {"model": model} for model in models]
    return {"name": "of a run", "models": [f"folder-{i}" for i in range(len(models))], "analyses": analyses}


def test_candidates_stand_together_and_policies_in_the_order_they_were_named():
    rows = checkpoint_rows(found("warmup", "final"))
    assert [(row["candidate"], row["model"], row["folder"]) for row in rows] == [
        (name, model, folder)
        for name in ("6-2-2", HOSTILE)
        for model, folder in (("warmup", "folder-0"), ("final", "folder-1"))
    ]


@pytest.mark.parametrize("drifted", [True, False])
@pytest.mark.parametrize("states", [24, 0])
def test_the_page_escapes_names_and_equal_inputs_give_equal_bytes(tmp_path, states, drifted):
    first, second = (
        write_checkpoints(found("warmup", HOSTILE, states=states, drifted=drifted), tmp_path / name).read_text()
        for name in "ab"
    )
    assert first == second and "<script>alert" not in first
    assert 'href="folder-0/index.html"' in first and first.count("<svg") == 2
    assert ("nats" in first or "KL a token" in first) and "None" not in first and "nan" not in first


def test_the_terminal_names_every_candidate_and_policy():
    with redirect_stdout(io.StringIO()) as output:
        print_checkpoints(found("warmup", "final"))
    text = output.getvalue()
    assert text.count("warmup") == text.count("final") == 2 and "6-2-2" in text
