"""What decides a run is in its identity: every module of the training that its steps import is in the code digest."""

from __future__ import annotations

import ast

from spo_core.runs.fingerprint import PACKAGE, TRAINING

# what a run is, what its recorded trees are, and what is checked before it starts: none computes what is trained
OTHERS = {"doors", "example", "identity", "recorded", "warmup"}


def imported(module: str) -> set[str]:
    """Modules of spo_core/train that one of them imports."""
    tree = ast.parse((PACKAGE / "train" / f"{module}.py").read_text())
    names = (node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    return {name.removeprefix("spo_core.train.") for name in names if name.startswith("spo_core.train.")}


def test_every_module_that_the_steps_import_is_in_the_digest():
    reached, waiting = set(), {"steps", "opening"}
    while waiting:
        module = waiting.pop()
        reached.add(module)
        waiting |= imported(module) - reached - OTHERS
    listed = {name.removeprefix("train/") for name in TRAINING if name.startswith("train/")}
    assert reached == listed
