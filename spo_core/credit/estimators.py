"""Calls a value or advantage estimator of the project's own on a tree, and checks what it returns."""

from __future__ import annotations

from typing import Any

import numpy as np

from spo_core.config import CustomParams
from spo_core.errors import TrainingError, type_and_line
from spo_core.system.plugins import load
from spo_core.tree import RolloutTree


def estimated(key: str, params: CustomParams, door: type, tree: RolloutTree, *more: Any) -> np.ndarray:
    """Result of the function at ``params.path`` for a tree, float64 [nodes]; ``door`` is its protocol.

    Raises TrainingError, naming ``key``, where it fails, or gives another shape or an infinite number.
    """
    where, question = f"{key}: {params.path}", f"the tree of question {tree.question_id!r}"
    function = load(key, params.path, params.options, door)
    try:
        found = np.array(function(tree, *more), np.float64)
    except Exception as error:
        raise TrainingError(f"{where} failed on {question} with {type_and_line(error)}") from error
    if found.shape != (len(tree.nodes),):
        raise TrainingError(
            f"{where} gave an array of shape {found.shape} for {question}; it must give one number for each of its "
            f"{len(tree.nodes)} nodes, the prompt among them"
        )
    if np.isinf(found).any():
        node = int(np.argmax(np.isinf(found)))
        raise TrainingError(f"{where} gave node {node} of {question} {found[node]}; it must be finite")
    return found
