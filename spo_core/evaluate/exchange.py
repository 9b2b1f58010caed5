"""Files through which an evaluation and its lighteval process talk, all in one scratch folder.

Importable in both environments: no torch, no transformers, no lighteval.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from spo_core.config import EvaluateParams
from spo_core.errors import ConfigError

REQUEST = "request.json"
QUESTIONS = "questions"  # a folder: lighteval loads it as a dataset
POLICY = "policy"  # a link to the checkpoint, so that no path of lighteval's leads into it
ANSWERS = "answers.jsonl"
REPORT = "report.json"
PROGRESS = "progress.json"


@dataclass(frozen=True, slots=True)
class Request:
    """What to evaluate; the prompts stand in QUESTIONS, the checkpoint behind POLICY."""

    params: EvaluateParams
    stop: list[str]
    """Strings that end a completion, as the policy's stop tokens do."""
    seed: int
    threads: int
    parent: int
    """Process that waits for the result; the child ends with it."""

    def write(self, scratch: Path, prompts: Mapping[str, str]) -> None:
        """``prompts`` by question id."""
        content = asdict(self) | {"params": self.params.model_dump(mode="json")}
        (scratch / REQUEST).write_text(json.dumps(content), encoding="utf-8")
        (scratch / QUESTIONS).mkdir()
        rows = (json.dumps({"question_id": key, "prompt": text}) + "\n" for key, text in prompts.items())
        (scratch / QUESTIONS / "test.jsonl").write_text("".join(rows), encoding="utf-8")

    def max_length(self, prompt_tokens: int, positions: int | None) -> int:
        """Longest prompt plus longest completion, in tokens. Raises ConfigError if the policy has too few positions."""
        for context, length in self.params.contexts.items():
            if positions is not None and prompt_tokens + length > positions:
                raise ConfigError(
                    f"evaluate.contexts.{context}: {length} tokens after a prompt of {prompt_tokens} exceed the "
                    f"policy's {positions} positions; lower it, or evaluate a policy that has more"
                )
        return prompt_tokens + max(self.params.contexts.values())

    @classmethod
    def read(cls, scratch: Path) -> Request:
        content = json.loads((scratch / REQUEST).read_text(encoding="utf-8"))
        return cls(**content | {"params": EvaluateParams.model_validate(content["params"])})


@dataclass(frozen=True, slots=True)
class Answers:
    """All completions of one question in one context; the lists have one item a completion."""

    context: str
    question_id: str
    prompt_ids: list[int]
    """Token ids that were fed to the policy, without padding."""
    completions: list[str]
    tokens: list[int]
    """Sampled tokens, the stop token included."""
    stopped: list[bool]


@dataclass(frozen=True, slots=True)
class Report:
    """What lighteval itself reports."""

    stopped: dict[str, float]
    """Share of completions, by context."""
    versions: dict[str, str]


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
    """Completions finished so far; replaced as a whole, so that a reader never sees half of it."""
    partial = scratch / f"{PROGRESS}.partial"
    partial.write_text(json.dumps(done))
    partial.replace(scratch / PROGRESS)


def read_progress(scratch: Path) -> int:
    path = scratch / PROGRESS
    return json.loads(path.read_text()) if path.is_file() else 0
