"""Trees as nested JSON, one a line: read into a RolloutTree whose nodes stand in depth-first order."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np

from spo_core.errors import DataError
from spo_core.tree import Finish, Node, RolloutTree

KEYS = {"token_ids", "logprobs", "reward", "children", "finish", "trainable"}
_TOKEN = re.compile(r'[ \t\n\r]*([{}\[\]:,]|"(?:[^"\\]|\\.)*"|[^\s{}\[\]:,"]+)')


def read_tree(text: str, where: str) -> RolloutTree:
    """One tree from its JSON. Raises DataError, beginning with ``where`` and naming the node, for anything else.

    The root is the prompt: it needs ``token_ids`` alone, and may have ``question_id``. Every other node needs
    ``logprobs``, one a token, and every leaf ``reward``. Nodes count from 0 in depth-first order.
    """
    try:
        root = parse(text)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from None
    nodes: list[Node] = []
    open_nodes: list[tuple[Any, int]] = [(root, -1)]
    while open_nodes:  # not a recursion: a chain may be as deep as it has segments
        value, parent = open_nodes.pop()
        try:
            node, children = _node(value, parent)
        except DataError as error:
            raise DataError(f"{where}: node {len(nodes)}: {error}") from None
        open_nodes += [(child, len(nodes)) for child in reversed(children)]
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
    default = Finish.PROMPT if parent < 0 else Finish.SEGMENT if children else Finish.STOP
    finish = value.get("finish", str(default))
    if finish not in set(Finish) or (finish == Finish.PROMPT) != (parent < 0):
        raise DataError(f"finish must be prompt for the root and segment, stop or length below, not {_shown(finish)}")
    return Node(
        parent,
        np.asarray(ids, np.int32),
        np.asarray(logprobs if parent >= 0 else np.zeros(len(ids)), np.float32),
        Finish(finish),
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
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return f"a {type(value).__name__}" if isinstance(value, dict | list) else json.dumps(value)[:40]


def parse(text: str) -> Any:
    """``json.loads`` for any depth; raises ValueError for what is not JSON."""
    try:
        return json.loads(text)
    except RecursionError:
        return _parse_deep(text)


def _parse_deep(text: str) -> Any:
    """JSON without recursion. ``wanted`` says what comes next; "first" allows the container to end at once."""
    outer: list[Any] = []
    stack: list[Any] = [outer]  # the open containers
    names: list[str] = []  # the members whose values are awaited
    wanted, position = "value", 0
    while len(stack) > 1 or not outer:
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"something is missing or broken at character {position + 1}")
        token, position = match[1], match.end()
        inner = stack[-1]
        closing = "}" if isinstance(inner, dict) else "]"
        if token == closing and wanted in ("first name", "first value", "next") and len(stack) > 1:
            stack.pop()
            wanted = "next"
        elif wanted in ("value", "first value") and token not in ("]", "}", ":", ","):
            value = {"{": {}, "[": []}[token] if token in ("{", "[") else json.loads(token)
            if isinstance(inner, dict):
                inner[names.pop()] = value
            else:
                inner.append(value)
            wanted = {"{": "first name", "[": "first value"}.get(token, "next")
            if wanted != "next":
                stack.append(value)
        elif wanted in ("name", "first name") and token[0] == '"':
            names.append(json.loads(token))
            wanted = "colon"
        elif wanted == "colon" and token == ":":
            wanted = "value"
        elif wanted == "next" and token == ",":
            wanted = "name" if isinstance(inner, dict) else "value"
        else:
            raise ValueError(f"unexpected {token[:20]!r} at character {match.start(1) + 1}")
    if text[position:].strip():
        raise ValueError(f"more text after the value, at character {position + 1}")
    return outer[0]
