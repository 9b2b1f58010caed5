"""Every completion of an evaluation, a row each, so that a score can be traced to what it was given for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from spo_core.verify import Outcome


@dataclass(frozen=True, slots=True)
class Sample:
    """One graded completion."""

    question_id: str
    context: str
    sample: int
    """Its number among the completions of the question, from 0."""
    completion: str
    given: str | None
    """The answer found in the completion."""
    outcome: Outcome
    tokens: int
    """Sampled tokens, the stop token included."""

    @property
    def correct(self) -> bool:
        return self.outcome is Outcome.CORRECT


SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("context", pa.string()),
        ("sample", pa.int32()),
        ("completion", pa.string()),
        ("given", pa.string()),
        ("outcome", pa.string()),
        ("tokens", pa.int32()),
    ]
)


def write_details(path: Path, samples: Iterable[Sample]) -> None:
    """Parquet with the columns of Sample."""
    pq.write_table(pa.Table.from_pylist([asdict(sample) for sample in samples], schema=SCHEMA), path)


def read_details(path: Path) -> list[Sample]:
    rows = pq.read_table(path, schema=SCHEMA).to_pylist()
    return [Sample(**row | {"outcome": Outcome(row["outcome"])}) for row in rows]
