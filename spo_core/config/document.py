"""Reads a YAML document as YAML 1.2 has it (as DVC reads params/), and nothing that could be read in two ways.

A plain scalar is null, true, false, a number, or text: dates, ``yes``, ``1:30`` and ``1_000`` are text, as is a number
too large for a float. Keys are text as they are written. Refused are keys that stand twice, tags of other types,
numbers beyond 64 bits, and files that are not UTF-8.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from spo_core.errors import ConfigError

DEEPEST, LARGEST = 50, 100_000  # levels and values; an alias may repeat itself without end
LONGEST = 120  # characters of a key in a message
TOO_DEEP = f"nested more than {DEEPEST} levels deep"
_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_NULL = re.compile(r"~|null|Null|NULL|")


class _Loader(yaml.SafeLoader):
    """PyYAML's reader of nodes, with the scalars of YAML 1.2's core schema and merge keys (``<<``)."""

    yaml_implicit_resolvers: dict = {}


for _name, _pattern in (
    ("int", _INT),
    ("float", _FLOAT),
    ("bool", _BOOL),
    ("null", _NULL),
    ("merge", re.compile("<<")),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern.pattern})\Z"), None)


@dataclass(slots=True)
class Document:
    """Content of a YAML document; ``lines`` has the line, from 1, of each key and item by its path."""

    content: Any = None
    lines: dict[tuple[str, ...], int] = field(default_factory=dict)


class _Refusal(ValueError):
    """What cannot be taken, and the node where it stands."""

    def __init__(self, node: yaml.Node, message: str) -> None:
        super().__init__(message)
        self.line = node.start_mark.line + 1


def read_document(path: Path) -> Document:
    """Read a YAML file. Raises ConfigError, naming file and line, where it is missing or cannot be read one way."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; run from the project's folder") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    return parse_document(str(path), text, numbered=True)


def parse_document(where: str, text: str, *, numbered: bool = False) -> Document:
    """Parse a YAML document. Raises ConfigError as ``read_document``, which begins with ``where`` and, ``numbered``,
    the line. No message holds a value: it may be a secret that was put into the wrong place.
    """
    document = Document()
    try:
        node = yaml.compose(text, _Loader)
        if node is not None:
            document.content = _value(node, (), document)
    except _Refusal as error:
        line, message = error.line, str(error)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, at = (mark.line + 1, f" (column {mark.column + 1})") if mark else (None, "")
        message = f"not valid YAML: {error.problem or error.context}{at}"
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"not valid YAML: character #x{ord(text[error.position]):04x} is not allowed"
    except RecursionError:
        line, message = None, TOO_DEEP
    else:
        return document
    raise ConfigError(f"{where}:{line}: {message}" if numbered and line else f"{where}: {message}")


def _value(node: yaml.Node, path: tuple[str, ...], document: Document) -> Any:
    if len(path) > DEEPEST:
        raise _Refusal(node, TOO_DEEP)
    if len(document.lines) > LARGEST:
        raise _Refusal(node, f"more than {LARGEST:,} values")
    kind = node.tag.removeprefix(_TAG)
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return _mapping(node, path, document)
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        items = []
        for index, item in enumerate(node.value):
            document.lines[*path, str(index)] = item.start_mark.line + 1
            items.append(_value(item, (*path, str(index)), document))
        return items
    if isinstance(node, yaml.ScalarNode) and kind in ("str", "int", "float", "bool", "null", "merge"):
        return _scalar(node, kind)
    raise _Refusal(
        node, f"tag {node.tag.replace(_TAG, '!!')} is none that is read here; write a text, a number or a list"
    )


def _mapping(node: yaml.MappingNode, path: tuple[str, ...], document: Document) -> dict[str, Any]:
    found: dict[str, Any] = {}
    merged: list[dict[str, Any]] = []
    first: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise _Refusal(key_node, "a key must be text")
        key = _joined(key_node, key_node.value)
        if key in first:
            named = f"key {'.'.join((*path, key))!r}"[:LONGEST]
            raise _Refusal(key_node, f"{named} stands twice (in line {first[key]} too); join the two")
        first[key] = line
        if key_node.tag == f"{_TAG}merge":
            merged += _merged(value_node, path, document)
            continue
        document.lines[*path, key] = line
        found[key] = _value(value_node, (*path, key), document)
    for mapping in merged:  # the first that has a key gives it
        found = {**mapping, **found}
    return found


def _merged(node: yaml.Node, path: tuple[str, ...], document: Document) -> list[dict[str, Any]]:
    found = []
    for part in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        if not isinstance(part, yaml.MappingNode):
            raise _Refusal(node, "<< merges mappings alone")
        found.append(_mapping(part, path, document))
    return found


def _scalar(node: yaml.ScalarNode, kind: str) -> Any:
    text: str = node.value
    if kind == "null" and _NULL.fullmatch(text):
        return None
    if kind == "bool" and _BOOL.fullmatch(text):
        return text.lower() == "true"
    if kind == "int" and _INT.fullmatch(text):
        if len(text) > 70 or not -(2**63) <= (number := int(text, _base(text))) < 2**64:
            raise _Refusal(node, "a whole number beyond 64 bits; put it in quotes if it is text")
        return number
    if kind == "float" and _FLOAT.fullmatch(text):
        value = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return value if math.isfinite(value) or text[-1].isalpha() else text
    if kind not in ("str", "merge"):
        raise _Refusal(node, f"this is no {kind}")
    return _joined(node, text)


def _joined(node: yaml.Node, text: str) -> str:
    """The text with surrogates joined, which JSON escapes in pairs. Raises _Refusal for what no file can hold."""
    try:
        joined = text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise _Refusal(node, "a text with half a character (a lone surrogate)") from None
    if "\0" in joined:
        raise _Refusal(node, "a text with the character NUL")
    return joined


def _base(text: str) -> int:
    return {"0o": 8, "0x": 16}.get(text[:2], 10)
