"""``python -m spo_core.credit TREES.jsonl --preset NAME``: values and advantages of one's own trees."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from spo_core.config import load_params
from spo_core.credit import segment_credit
from spo_core.credit.audit import read_tree
from spo_core.errors import DataError, SPOError
from spo_core.system.command_line import read_lines, run


def command(
    trees: Annotated[str, typer.Argument(help="File of JSON lines, one tree a line; - reads standard input.")],
    preset: Annotated[str | None, typer.Option(help="An overlay of params/presets, by its name.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="namespace.key=value; may be repeated.")] = None,
) -> None:
    """Print the value and the advantage of every node of your own trees, as credit.* of a preset assigns them.

    \b
    A tree is one line of nested JSON; its root is the prompt:
      {"token_ids": [5, 9], "children": [
        {"token_ids": [7], "logprobs": [-0.4], "reward": 1.0},
        {"token_ids": [8, 2], "logprobs": [-1.2, -0.1], "children": [...]}]}
    Of every node: token_ids; logprobs, one a token (not of the root); children.
    Of leaves: reward. Of the root, if you like: question_id.
    If you like, of other nodes: finish (segment, stop, length) and trainable.

    \b
    With credit.value monte_carlo or adaptive_monte_carlo (preset spo-chain), a
    response is a chain of segments, each the child of the one before, and the
    value rollouts of a state are further children of the node that ends there,
    with "trainable": false. Equal states, by token ids, share value rollouts.

    \b
    Printed is one line a tree, numbers at full float64 precision:
      {"tree": 1, "question_id": "...", "values": [...], "advantages": [...]}
    tree is the number of its line. Both lists have one entry a node, depth first,
    a node before its children, these in order; null: not estimated. Nodes that are
    not trained, the root among them, have advantage 0.
    """
    params = load_params(Path.cwd(), preset, tuple(overrides or ()))
    for number, where, line in read_lines(trees):
        tree = read_tree(line, where)
        try:
            values, advantages = segment_credit(tree, params.credit)
        except SPOError as error:
            raise DataError(f"{where}: {error}") from None
        row: dict[str, object] = {"tree": number}
        if tree.question_id:
            row["question_id"] = tree.question_id
        print(json.dumps(row | {"values": _listed(values), "advantages": _listed(advantages)}, allow_nan=False))


def _listed(numbers: np.ndarray) -> list[float | None]:
    return [None if math.isnan(x) else x + 0.0 for x in numbers.tolist()]  # + 0.0: no minus zero


if __name__ == "__main__":
    run(command)
