"""Graded completions of an evaluated cell as Parquet, a row each, so that a score can be traced to them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from spo_core.system.files import atomic_file
from spo_core.verify import Outcome


@dataclass(frozen=True, slots=True)
class Sample:
    """One graded completion."""

    question_id: str
    sample: int
    """Number of the completion among those of its question, from 0."""
    completion: str
    gold: str
    """The right answer."""
    given: str | None
    """The answer found in the completion; None where there is none or the completion was truncated."""
    outcome: Outcome
    lighteval: str | None
    """What lighteval's metric says: correct, wrong or timeout; None where it was not asked."""
    tokens: int
    """Sampled tokens, the stop token included."""

    @property
    def correct(self) -> bool:
        return self.outcome is Outcome.CORRECT

    @property
    def disagrees(self) -> bool:
        """Whether one of the two graders calls the completion correct and the other does not."""
        return self.lighteval is not None and self.correct != (self.lighteval == "correct")


SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("sample", pa.int32()),
        ("completion", pa.string()),
        ("gold", pa.string()),
        ("given", pa.string()),
        ("outcome", pa.string()),
        ("lighteval", pa.string()),
        ("tokens", pa.int32()),
    ]
)


def write_details(path: Path, samples: Iterable[Sample]) -> None:
    """Write samples as Parquet with the columns of Sample."""
    with atomic_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist([asdict(sample) for sample in samples], schema=SCHEMA), temporary)


def read_details(path: Path) -> list[Sample]:
    rows = pq.read_table(path, schema=SCHEMA).to_pylist()
    return [Sample(**row | {"outcome": Outcome(row["outcome"])}) for row in rows]


def by_question(samples: Iterable[Sample]) -> list[list[Sample]]:
    """Group samples into (questions, samples), questions in the order of their first sample."""
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.question_id, []).append(sample)
    return list(found.values())
