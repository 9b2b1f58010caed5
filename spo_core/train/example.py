"""Prints the prompt of one question as the policy will get it: its text and its token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from spo_core.config import DataParams, Params
from spo_core.paths import Paths
from spo_core.policy.checkpoint import make_tokenizer
from spo_core.policy.tokenizer import load_tokenizer
from spo_core.problems import problem_set
from spo_core.problems.base import Generated, Question, read_split
from spo_core.problems.templates import encode_prompt

MADE_UP = Question("made up", "What is 1 + 1?", "2")


def print_example(params: Params, paths: Paths, console: Console | None = None) -> None:
    """Print the prompt of the first training question: of the prepared split where it is there, else one made up.

    The tokenizer is that of the warm-up or, before one, of ``policy.init``; where neither is at hand that is said.
    Raises DataError where the template does not fit the tokenizer.
    """
    console = console or Console(highlight=False, markup=False)
    console.print("\nPrompt", style="bold")
    tokenizer = _tokenizer(params, paths)
    if tokenizer is None:
        console.print("unknown: neither checkpoints/warmup nor the folder of policy.init is here, with its tokenizer")
        return
    for data in [part.data for part in params.data.mixture] or [params.data]:
        row = _question(data, paths.data(params.data.problem_set), bool(params.data.mixture))
        problem = problem_set(data)
        ids = encode_prompt(problem.template, tokenizer, row.question)
        console.print(f"of question {row.question_id}, {len(ids)} tokens, each as repr() shows it:", soft_wrap=True)
        console.print(" ".join(f"{i}:{tokenizer.decode([i])!r}" for i in ids), soft_wrap=True)
        console.print(f"text: {tokenizer.decode(ids)!r}", soft_wrap=True)


def _tokenizer(params: Params, paths: Paths) -> Any:
    warmup, init = paths.checkpoint("warmup"), params.policy.init
    if (warmup / "config.json").is_file():
        return load_tokenizer(warmup)
    if init.type == "scratch":
        return make_tokenizer(init.tokenizer, problem_set(params.data))
    return load_tokenizer(init.path) if (Path(init.path) / "config.json").is_file() else None


def _question(data: DataParams, folder: Path, mixed: bool) -> Question:
    """The first question of a set in the prepared splits in ``folder``, else one made up."""
    for row in read_split(folder, "train") if (folder / "train.jsonl").is_file() else ():
        if not mixed or row.question_id.startswith(f"{data.problem_set}-"):
            return row
    few = data.model_copy(update={"train": 1, "validation": 1, "test": 1})
    problem = problem_set(few)
    return problem.build()["train"][0] if isinstance(problem, Generated) else MADE_UP
