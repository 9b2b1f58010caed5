"""Files that an evaluation and its lighteval process exchange, all in one scratch folder.

Importable in both environments: no torch, no transformers, no lighteval.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from spo_core.errors import DataError
from spo_core.system.files import write_text

REQUEST = "request.json"
QUESTIONS = "questions"  # a folder: lighteval loads it as a dataset
POSITIONS = "positions.json"
POLICY = "policy"  # a link to the checkpoint, so that lighteval writes nothing into it
ANSWERS = "answers.jsonl"
REPORT = "report.json"
PROGRESS = "progress.json"


@dataclass(frozen=True, slots=True)
class Servers:
    """vLLM servers on this machine, and what every request to them has in common."""

    sockets: tuple[str, ...]
    """Paths of unix sockets that only their owner can open."""
    slots: int
    """Requests that one server is given at a time."""
    request_seconds: float
    """Seconds after which a request without an answer is sent again."""
    stop_ids: tuple[int, ...]
    temperature: float
    top_p: float
    context_length: int
    """Most tokens of a prompt and its completion together."""
    seeded: bool = True
    """Whether each request has a seed of its own."""


@dataclass(frozen=True, slots=True)
class Request:
    """How to sample one cell. Prompts are in the folder QUESTIONS, the checkpoint is behind the link POLICY."""

    context_length: int
    """Most tokens a completion may have, the stop token included."""
    max_length: int
    """Longest prompt plus longest completion, in tokens."""
    samples: int
    temperature: float
    top_p: float
    seed: int
    batch_size: int
    """Completions decoded at once."""
    stop: tuple[str, ...]
    """Strings that end a completion, as the policy's stop tokens do."""
    threads: int
    servers: Servers | None = None
    """Servers that sample; None: lighteval itself samples."""
    special_as_text: bool = True
    """Whether the policy's special tokens in a prompt are plain text."""

    def write(self, scratch: Path, prompts: Mapping[str, str]) -> None:
        """Write ``prompts`` (question id -> text) as a dataset, and then the request, for which the child waits."""
        (scratch / QUESTIONS).mkdir()
        rows = (json.dumps({"question_id": key, "prompt": text}) + "\n" for key, text in prompts.items())
        (scratch / QUESTIONS / "test.jsonl").write_text("".join(rows), encoding="utf-8")
        write_text(scratch / REQUEST, json.dumps(asdict(self)))

    @classmethod
    def read(cls, scratch: Path) -> Request:
        """Wait for the request and read it."""
        while not (scratch / REQUEST).is_file():
            time.sleep(0.02)
        content = json.loads((scratch / REQUEST).read_text(encoding="utf-8"))
        content["stop"] = tuple(content["stop"])
        if content["servers"] is not None:
            tuples = {name: tuple(content["servers"][name]) for name in ("sockets", "stop_ids")}
            content["servers"] = Servers(**content["servers"] | tuples)
        return cls(**content)


@dataclass(frozen=True, slots=True)
class Answers:
    """All completions of one question; the lists but ``prompt_ids`` have one item per completion."""

    question_id: str
    prompt_ids: list[int]
    """Token ids that were fed to the policy, without padding."""
    completions: list[str]
    tokens: list[int]
    """Sampled tokens, the stop token included."""
    stopped: list[bool]


@dataclass(frozen=True, slots=True)
class Report:
    """Figures that lighteval itself reports."""

    stopped: float
    """Share of completions that ended by themselves."""
    prompt_hash: str
    """Hash of all prompts together."""
    versions: dict[str, str]


def write_positions(scratch: Path, find: Callable[[Path], int | None]) -> None:
    """Write what ``find`` finds as the policy's number of positions, or why it refuses the policy."""
    try:
        positions, refusal = find((scratch / POLICY).resolve()), None
    except DataError as error:
        positions, refusal = None, str(error)
    write_text(scratch / POSITIONS, json.dumps([positions, refusal]))


def read_positions(scratch: Path) -> int | None:
    """The policy's number of positions, None where it has no limit. Raises DataError where it was refused."""
    positions, refusal = json.loads((scratch / POSITIONS).read_text(encoding="utf-8"))
    if refusal is not None:
        raise DataError(refusal)
    return positions


def write_answers(scratch: Path, answers: list[Answers]) -> None:
    lines = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in answers)
    (scratch / ANSWERS).write_text("".join(lines), encoding="utf-8")


def read_answers(scratch: Path) -> list[Answers]:
    with (scratch / ANSWERS).open(encoding="utf-8") as lines:
        return [Answers(**json.loads(line)) for line in lines]


def write_report(scratch: Path, report: Report) -> None:
    (scratch / REPORT).write_text(json.dumps(asdict(report)), encoding="utf-8")


def read_report(scratch: Path) -> Report:
    return Report(**json.loads((scratch / REPORT).read_text(encoding="utf-8")))


def write_progress(scratch: Path, done: int) -> None:
    """Write the number of finished completions; the file is replaced as a whole, so that none reads half of it."""
    partial = scratch / f"{PROGRESS}.partial"
    partial.write_text(json.dumps(done))
    partial.replace(scratch / PROGRESS)


def read_progress(scratch: Path) -> int:
    path = scratch / PROGRESS
    return json.loads(path.read_text()) if path.is_file() else 0
