"""Questions above completions: those that were asked, or none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spo_core.config import DataParams
from spo_core.evaluate.lighteval.details import Sample
from spo_core.paths import Paths
from spo_core.problems import problem_set
from spo_core.problems.base import Question
from spo_core.verify import Outcome
from spo_core.view.scored import questions_asked


def generated(seed: int, **sizes: int) -> list[Question]:
    return problem_set(DataParams(seed=seed, train=4, validation=2, test=30, **sizes)).test()


def prepare(folder: Path, rows: list[Question]) -> None:
    folder.mkdir(parents=True)
    fields = ("question_id", "question", "answer", "solution")
    lines = [json.dumps({key: getattr(row, key) for key in fields}) for row in rows]
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n")


def answered(rows: list[Question]) -> list[Sample]:
    return [Sample(r.question_id, k, "?", r.answer, None, Outcome.WRONG, None, 1) for r in rows for k in range(2)]


@pytest.mark.parametrize("seed", range(5))
def test_questions_are_those_asked_of_a_mixture_too(tmp_path, seed):
    """Generated sets of all seeds have the same ids; another seed's texts must not stand above completions."""
    asked, others = generated(seed + 1), generated(0)
    assert [row.question_id for row in asked] == [row.question_id for row in others]
    texts, paths = {row.question_id: row.question for row in asked}, Paths(tmp_path)
    prepare(tmp_path / "data" / "arithmetic", others)
    assert questions_asked(paths, "outputs/mix", "arithmetic", answered(asked)) == {}
    extra = Question("set2-test-000000", "a riddle", "7", "")
    prepare(tmp_path / "outputs" / "runs" / "mix" / "data" / "mixed", [extra, *asked])
    assert questions_asked(paths, "outputs/mix", "arithmetic", answered(asked)) == texts
    first = {asked[0].question_id: asked[0].question}
    assert questions_asked(paths, "outputs/mix", "arithmetic", answered(asked[:1])) == first
    assert questions_asked(paths, "published/main", "arithmetic", answered(others)) == {
        row.question_id: row.question for row in others
    }
