"""Evaluated cells of runs and of other policies, and their completions, one policy's or those of two side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from spo_core.errors import DataError, SPOError
from spo_core.evaluate.lighteval.details import Sample, read_details
from spo_core.evaluate.result import CellScore
from spo_core.observe.formatting import visible
from spo_core.paths import Paths
from spo_core.problems.base import read_split
from spo_core.verify import Outcome
from spo_core.view.catalogue import MAIN

OTHERS = "published/others"  # policies that are no checkpoint of a run, and other suites
FIRST = ("warmup", "final", "best")


@dataclass(frozen=True, slots=True)
class Scored:
    """Evaluations of one run's checkpoints, or those that belong to no run: files of scores by policy and cell."""

    key: str
    title: str
    files: Mapping[str, Mapping[str, Path]]

    @property
    def policies(self) -> list[str]:
        return list(self.files)

    @property
    def cells(self) -> list[str]:
        return list(dict.fromkeys(cell for files in self.files.values() for cell in files))

    def score(self, policy: str, cell: str) -> CellScore | None:
        """The score of a policy in a cell; None where there is none, or the file is not one that evaluation wrote."""
        path = self.files.get(policy, {}).get(cell)
        if path is None:
            return None
        try:
            return CellScore.from_json(path.read_text(encoding="utf-8"))
        except (DataError, OSError):
            return None

    def samples(self, policy: str, cell: str) -> list[Sample]:
        """All completions. Raises DataError where they are not here, as on a clone before ``dvc pull``."""
        path = self.files.get(policy, {}).get(cell)
        if path is None:
            raise DataError(f"{policy} in {cell}: not evaluated in {self.title}")
        details = path.with_suffix(".parquet")
        try:
            return _samples(details, details.stat().st_mtime_ns)
        except (OSError, pa.ArrowInvalid, ValueError):
            raise DataError(f"{details.name} of {policy}: no completions here; dvc pull, or evaluate again") from None


@lru_cache(maxsize=8)
def _samples(path: Path, stamp: int) -> list[Sample]:
    return read_details(path)


def find_scored(paths: Paths) -> list[Scored]:
    """Evaluations of the main run, of those below outputs/runs, and of other policies; empty ones are left out."""
    found = [Scored(MAIN, "main", _of_output(paths.root))]
    for output in sorted((paths.root / "outputs" / "runs").glob("*")):
        found.append(Scored(f"outputs/{visible(output.name)}", visible(output.name), _of_output(output)))
    others: dict[str, dict[str, Path]] = {}
    for path in sorted((paths.root / "outputs" / "evaluations").glob("*/*/*.json")):
        others.setdefault(visible(f"{path.parts[-3]}, {path.parts[-2]}"), {})[visible(path.stem)] = path
    found.append(Scored(OTHERS, "other policies and suites", others))
    return [scored for scored in found if scored.files]


def find_one(paths: Paths, key: str) -> Scored:
    """The evaluations of a key, which is compared and never made into a path. Raises DataError for an unknown one."""
    for scored in find_scored(paths):
        if scored.key == key:
            return scored
    raise DataError(f"{key}: nothing was evaluated there")


def _of_output(output: Path) -> dict[str, dict[str, Path]]:
    found: dict[str, dict[str, Path]] = {}
    for path in sorted((output / "metrics" / "evaluate").glob("*/*.json")):
        found.setdefault(visible(path.parent.name), {})[visible(path.stem)] = path
    return {name: found[name] for name in sorted(found, key=lambda n: (FIRST.index(n) if n in FIRST else 9, n))}


WRONG: dict[str, Callable[[Sample], bool]] = {
    "all": lambda sample: True,
    "disagreements": lambda sample: sample.disagrees,
} | {str(outcome): (lambda sample, o=outcome: sample.outcome is o) for outcome in Outcome}


def chosen_samples(samples: Sequence[Sample], only: str, text: str) -> list[Sample]:
    """Completions of one of WRONG that hold ``text``, whatever its case; those that the graders disagree about first,
    the truncated ones among them last."""
    wanted = text.casefold()
    kept = [s for s in filter(WRONG.get(only, WRONG["all"]), samples) if wanted in s.completion.casefold()]
    return sorted(kept, key=lambda s: (not s.disagrees, s.disagrees and s.outcome is Outcome.TRUNCATED))


@dataclass(frozen=True, slots=True)
class Flip:
    """A question on which two policies differ, with the completions of both."""

    question_id: str
    gold: str
    before: float
    """Share of a's completions that are correct."""
    after: float
    a: tuple[Sample, ...]
    b: tuple[Sample, ...]


def flips(a: Sequence[Sample], b: Sequence[Sample]) -> list[Flip]:
    """Questions that b answers correctly more often than a or less, those that lost most first. Only what both were
    asked counts."""
    of_a, of_b = _by_id(a), _by_id(b)
    found = []
    for question, mine in of_a.items():
        theirs = of_b.get(question)
        if theirs is None:
            continue
        before, after = (sum(s.correct for s in samples) / len(samples) for samples in (mine, theirs))
        if before != after:
            found.append(Flip(question, mine[0].gold, before, after, tuple(mine), tuple(theirs)))
    return sorted(found, key=lambda flip: flip.after - flip.before)


def _by_id(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.question_id, []).append(sample)
    return found


def questions_asked(paths: Paths, key: str, problem_set: str, samples: Iterable[Sample]) -> dict[str, str]:
    """Texts of test questions by id, from the prepared split that holds all that were asked, with the same answers: the
    problem set's own or a mixture's, of this run or else of the main one. Empty where there is none: sets that are
    generated from another seed have other questions under the same ids."""
    golds = {sample.question_id: sample.gold for sample in samples}
    own = [p for p in (paths.root / "outputs" / "runs").glob("*") if f"outputs/{visible(p.name)}" == key]
    for output in [*own, paths.root]:
        for folder in sorted((output / "data").glob("*"), key=lambda folder: (folder.name != problem_set, folder.name)):
            with suppress(SPOError):
                found = {row.question_id: row for row in read_split(folder, "test")}
                if all(i in found and found[i].answer == gold for i, gold in golds.items()):
                    return {i: found[i].question for i in golds}
    return {}
