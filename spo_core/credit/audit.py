"""Reads trees from nested JSON, one a line, with nodes in depth-first order."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import numpy as np

from spo_core.errors import DataError
from spo_core.system.files import TooDeep, parse_json
from spo_core.tree import FinishReason, Node, RolloutTree

KEYS = {"token_ids", "logprobs", "reward", "children", "finish", "trainable"}
DEEPEST = 400  # nodes below one another, two levels of JSON each: Python's parser takes about 1,000 levels
TOO_DEEP = f"more than {DEEPEST} segments one behind the other; join some, or cut the response less often"


def read_tree(text: str, where: str) -> RolloutTree:
    """Read one tree from its JSON. Raises DataError, which begins with ``where`` and names the node, where it is none.

    The root is the prompt: it needs ``token_ids`` alone, and may have ``question_id``. Every other node needs
    ``logprobs``, one a token, and every leaf ``reward``. Nodes count from 0 in depth-first order.
    """
    try:
        root = parse_json(text)
    except TooDeep:
        raise DataError(f"{where}: {TOO_DEEP}") from None
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from None
    nodes: list[Node] = []
    open_nodes: list[tuple[Any, int, int]] = [(root, -1, 0)]
    while open_nodes:
        value, parent, depth = open_nodes.pop()
        if depth > DEEPEST:
            raise DataError(f"{where}: {TOO_DEEP}")
        try:
            node, children = _node(value, parent)
        except DataError as error:
            raise DataError(f"{where}: node {len(nodes)}: {error}") from None
        open_nodes += [(child, len(nodes), depth + 1) for child in reversed(children)]
        nodes.append(node)
    try:
        question = root.get("question_id")
        return RolloutTree("" if question is None else str(question), tuple(nodes))
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _node(value: Any, parent: int) -> tuple[Node, list[Any]]:
    if not isinstance(value, dict):
        raise DataError(f"a node is an object, not {_shown(value)}")
    unknown = sorted(set(value) - KEYS - ({"question_id"} if parent < 0 else set()))
    if unknown:
        raise DataError(f"unknown key {unknown[0]!r}; known are {', '.join(sorted(KEYS))}, and question_id of the root")
    children = value.get("children") or []
    if not isinstance(children, list):
        raise DataError(f"children must be a list, not {_shown(children)}")
    ids = _numbers(value, "token_ids", whole=True)
    logprobs = _numbers(value, "logprobs", whole=False, optional=parent < 0)
    if len(logprobs) != len(ids) and (parent >= 0 or len(logprobs)):
        raise DataError(f"{len(ids)} token_ids and {len(logprobs)} logprobs")
    reward = value.get("reward")
    if reward is None and not children and parent >= 0:
        raise DataError("a leaf needs a reward")
    if reward is not None and (not _is_number(reward) or not math.isfinite(reward)):
        raise DataError(f"reward must be a finite number, not {_shown(reward)}")
    trainable = value.get("trainable", True)
    if not isinstance(trainable, bool):
        raise DataError(f"trainable must be true or false, not {_shown(trainable)}")
    default = FinishReason.PROMPT if parent < 0 else FinishReason.SEGMENT if children else FinishReason.STOP
    finish = value.get("finish", str(default))
    if finish not in set(FinishReason) or (finish == FinishReason.PROMPT) != (parent < 0):
        raise DataError(f"finish must be prompt for the root and segment, stop or length below, not {_shown(finish)}")
    return Node(
        parent,
        np.asarray(ids, np.int32),
        np.asarray(logprobs if parent >= 0 else np.zeros(len(ids)), np.float32),
        FinishReason(finish),
        trainable and parent >= 0,
        math.nan if reward is None else float(reward),
    ), children


def _numbers(value: dict[str, Any], key: str, *, whole: bool, optional: bool = False) -> list:
    if key not in value and not optional:
        raise DataError(f"{key} is missing")
    found = value.get(key) or []
    if not isinstance(found, list):
        raise DataError(f"{key} must be a list, not {_shown(found)}")
    for item in found:
        good = isinstance(item, int) and 0 <= item < 2**31 if whole else _is_number(item)
        if not good or isinstance(item, bool):
            raise DataError(f"{key} must hold {'token ids' if whole else 'numbers'}, not {_shown(item)}")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _shown(value: Any) -> str:
    return f"a {type(value).__name__}" if isinstance(value, dict | list) else json.dumps(value)[:40]
