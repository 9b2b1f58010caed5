"""Digests of what code does: without comments, docstrings and layout, so that editing these keeps a run alive."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
# the code that decides a result, given params and data: its code_digest belongs to a run's identity
WARMUP = ("learn/muon", "learn/state", "learn/supervised", "policy", "problems", "rollout/seeds", "train/warmup")
TRAINING = (
    "credit",
    "learn",
    "policy",
    "problems",
    "rollout",
    *(
        f"train/{name}"
        for name in (
            *("checkpoints", "gold_values", "opening", "questions", "resampling", "sampling", "session", "shards"),
            "steps",
        )
    ),
    "tree",
    "verify",
)
EVALUATION = (
    "evaluate",
    "policy",
    "problems",
    *(f"rollout/{n}" for n in ("decoding", "seeds", "stops", "token_texts")),
    "verify",
)
ANALYSIS = (
    *(f"analysis/{name}" for name in ("bench", "candidates", "measure", "sketch", "truth", "warmed")),
    "credit",
    "learn",
    "policy",
    "problems",
    "rollout",
    *(f"train/{name}" for name in ("gold_values", "questions", "sampling")),
    "tree",
    "verify",
)
SERVING = (
    "rollout/engine",
    *(f"rollout/vllm/{name}" for name in ("client", "policy_worker", "serve", "server", "settings")),
)
RACES = 100


def code_digest(*names: str) -> str:
    """SHA-256 over the syntax trees of files and folders of this package, named without suffix: ``learn``, ``tree``."""
    total = hashlib.sha256()
    for name in sorted(names):
        path = PACKAGE / name
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
        for file in files:
            meaning = _meaning(file.read_text(encoding="utf-8"))
            total.update(f"{file.relative_to(PACKAGE).as_posix()}\0{meaning}\n".encode())
    return total.hexdigest()


def source_digest(path: Path) -> str:
    """SHA-256 over one file's syntax tree; over its bytes where it is not Python."""
    content = path.read_bytes()
    if path.suffix == ".py":
        content = _meaning(content.decode("utf-8")).encode()
    return hashlib.sha256(content).hexdigest()


@cache
def _meaning(source: str) -> str:
    """The syntax tree of a Python source as text, without docstrings."""
    for attempt in range(RACES):
        try:
            tree = ast.parse(source)
            break
        except SystemError:  # Python 3.11 before .9, while another thread parses too, as Prefect's do: gh-106905
            if attempt + 1 == RACES:
                raise
    return ast.dump(_without_docstrings(tree))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [s for s in node.body if not _is_string(s)] or [ast.Pass()]
    return tree


def _is_string(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
