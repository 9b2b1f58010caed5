"""GSM8K from its own JSONL files: ``train.jsonl`` and ``test.jsonl`` with ``question`` and ``answer``.

Prompt and answer convention as in the published Rho-1.1B runs: no special tokens, answer after ``####``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from spo_core.config import DataParams
from spo_core.errors import DataError
from spo_core.files import read_jsonl
from spo_core.problems.base import Question, answer_after_hashes, check_disjoint


class GSM8K:
    name = "gsm8k"
    source_files: tuple[str, ...] = ("train.jsonl", "test.jsonl")

    def build(self, params: DataParams) -> dict[str, list[Question]]:
        if params.source is None:
            raise DataError("data.source is not set: name the folder with GSM8K's train.jsonl and test.jsonl")
        source = Path(params.source).expanduser()
        train, test = (_read(source, split) for split in ("train", "test"))
        if params.validation >= len(train):
            raise DataError(f"data.validation {params.validation} leaves none of {len(train)} questions to train on")
        order = np.random.default_rng([params.seed, 1]).permutation(len(train))
        held_out = set(order[: params.validation].tolist())
        splits = {
            "train": [row for i, row in enumerate(train) if i not in held_out][: params.train],
            "validation": [row for i, row in enumerate(train) if i in held_out],
            "test": test[: params.test],
        }
        check_disjoint(splits)
        return splits

    def prompt(self, question: str) -> str:
        return f"[MATH_TASK] Problem:\n{question}\n\nSolution:"

    def demonstration(self, row: Question, params: DataParams, rng: np.random.Generator) -> str:
        return f"\n{row.solution}\n"

    def extract(self, completion: str) -> str | None:
        return answer_after_hashes(completion)

    def alphabet(self) -> None:
        return None


def _read(source: Path, split: str) -> list[Question]:
    path = source / f"{split}.jsonl"
    if not path.is_file():
        raise DataError(f"{path}: no such file; data.source must hold GSM8K's train.jsonl and test.jsonl")
    rows = []
    for number, line in read_jsonl(path):
        try:
            row = json.loads(line)
            solution = re.sub(r"<<.*?>>", "", row["answer"])
            answer = answer_after_hashes(solution)
            if answer is None:
                raise ValueError("no answer after ####")
            rows.append(Question(f"gsm8k-{split}-{number - 1:05d}", row["question"], answer, solution))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}:{number}: not a GSM8K row: {error}") from None
    return rows
