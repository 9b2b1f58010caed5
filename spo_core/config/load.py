"""Reading ``params/``: base files, a preset and ``key=value`` overrides laid over one another, then validated.

Base files hold the embedded default; ``params/presets/<name>.yaml`` is an overlay of several namespaces, and may name
another one, or one of ``presets/base``, that it ``extends``. ``params/suites/<name>.yaml`` is an overlay of
``evaluate``; the suite that a preset or an override names is laid beneath them. A mapping whose ``type`` an overlay
changes is replaced whole, as are the ``evaluate.contexts`` of suites and presets; every other mapping is merged key by
key. Unknown keys are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from spo_core.config.document import LONGEST, parse_document, read_document
from spo_core.config.learn import with_fidelity
from spo_core.config.params import Params
from spo_core.errors import ConfigError

NAMESPACES = ("run", "data", "policy", "rollout", "verify", "credit", "learn", "evaluate")
UNIONS = ("init", "partition", "value", "advantage", "mask", "loss", "kl", "backend", "engine", "task_runner")

LISTS = ("reward", "trackers")  # keys of lists whose members are of a union
Keys = tuple[str, ...]  # of a value, from the namespace down
ADVICE = {
    "string_type": "; put it in quotes if it is text (on a command line 'key=\"5\"')",
    "bool_type": "; write true or false",
}


@dataclass(frozen=True, slots=True)
class _Layer:
    """An overlay; where it comes from, a file or an override as messages name it; and where each of its keys stands."""

    where: Path | str
    overlay: dict[str, Any]
    places: dict[Keys, str]


def load_params(
    root: Path, preset: str | None = None, overrides: tuple[str, ...] = (), suite: str | None = None
) -> Params:
    """Read ``root/params``, lay a suite, a preset and ``key=value`` overrides over it, and validate.

    With ``suite`` given, the preset's own settings of ``evaluate`` are ignored. Raises ConfigError naming the file, its
    line and the key.
    """
    tree: dict[str, Any] = {}
    files = []
    for name in NAMESPACES:
        path = root / "params" / f"{name}.yaml"
        files.append(_layer(path))
        content = files[-1].overlay
        if set(content) != {name}:
            raise ConfigError(f"{path}: must hold the one top-level key {name!r}, found {sorted(content)}")
        tree[name] = content[name]
    layers = _preset(root / "params" / "presets", preset) if preset is not None else []
    if suite is not None:
        layers = [replace(x, overlay={k: v for k, v in x.overlay.items() if k != "evaluate"}) for x in layers]
    asked = [_override(override) for override in overrides]
    named = suite or _named_suite([*layers, *asked])
    if named is not None and not (isinstance(tree["evaluate"], dict) and named == tree["evaluate"].get("suite")):
        layers = [_layer(_suite(root / "params" / "suites", named), "evaluate"), *layers]
    places = {keys: place for layer in files for keys, place in layer.places.items()}
    for layer in [*layers, *asked]:
        replaced: list[Keys] = []
        if isinstance(layer.where, Path) and "contexts" in _namespace(layer.overlay, "evaluate"):
            evaluate = _namespace(tree, "evaluate")
            tree["evaluate"] = {k: v for k, v in evaluate.items() if k != "contexts"}  # replaced, not merged
            replaced.append(("evaluate", "contexts"))
        tree = _merge(tree, layer.overlay, replaced)
        kept = {keys: at for keys, at in places.items() if not any(keys[: len(r)] == r for r in replaced)}
        places = kept | layer.places
    params = _validate(tree, places, [*files, *layers, *asked])
    if suite is None:
        _check_positions(params, places)
    return params


def _namespace(overlay: dict[str, Any], name: str) -> dict[str, Any]:
    """A namespace of an overlay; empty where it has none, or something else under that key."""
    found = overlay.get(name)
    return found if isinstance(found, dict) else {}


def _named_suite(layers: Sequence[_Layer]) -> object:
    """Return ``evaluate.suite`` of the last layer that has one, else None."""
    named = [found["suite"] for layer in layers if "suite" in (found := _namespace(layer.overlay, "evaluate"))]
    return named[-1] if named else None


def _check_positions(params: Params, places: dict[Keys, str]) -> None:
    """Raise ConfigError where a context is longer than the positions of a policy that is made from scratch."""
    init, contexts = params.policy.init, params.evaluate.contexts
    name = max(contexts, key=lambda n: contexts[n])
    if init.type == "scratch" and contexts[name] > init.max_positions:
        where = _place(("evaluate", "contexts", name), places, ())
        raise ConfigError(
            f"{where}: evaluate.contexts.{name} {contexts[name]} exceeds policy.init.max_positions "
            f"{init.max_positions}; lower it, or evaluate in another evaluate.suite"
        )


def _origin(override: str) -> str:
    """Name an override in messages, without its value, which may be a secret that belongs elsewhere."""
    key = override.partition("=")[0]
    return f"--set {key if len(key) <= LONGEST else key[:LONGEST] + '...'}"


def _override(text: str) -> _Layer:
    """Parse ``a.b=1`` to the overlay ``{"a": {"b": 1}}``."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        shown = repr(text) if len(text) <= LONGEST else f"{text[:LONGEST]!r}..."
        raise ConfigError(f"--set {shown}: write it as namespace.key=value")
    where, keys = _origin(text), tuple(key.split("."))
    found = parse_document(where, value)
    tree = found.content
    for part in reversed(keys):
        tree = {part: tree}
    return _Layer(where, tree, {(*keys, *below): where for below in [(), *found.lines]})


def _suite(folder: Path, name: object) -> Path:
    known = sorted(p.stem for p in folder.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"evaluate.suite: no suite {name!r} in {folder}; there are: {', '.join(known)}")
    return folder / f"{name}.yaml"


def _preset(folder: Path, preset: str) -> list[_Layer]:
    """Read a preset and those it extends, base first. Raises ConfigError for unknown names and cycles."""
    known = sorted(p.stem for p in folder.glob("*.yaml"))
    if preset not in known:
        raise ConfigError(f"no preset {preset!r} in {folder}; there are: {', '.join(known)}")
    found: list[_Layer] = []
    name: str | None = preset
    while name is not None:
        path = folder / f"{name}.yaml"
        found.append(_layer(path))
        base = found[-1].overlay.pop("extends", None)
        if base is not None and not (isinstance(base, str) and (folder / f"{base}.yaml").is_file()):
            known += sorted(f"base/{p.stem}" for p in (folder / "base").glob("*.yaml"))
            raise ConfigError(f"{path}: extends {base!r}, which is no preset; there are: {', '.join(known)}")
        if base is not None and folder / f"{base}.yaml" in (layer.where for layer in found):
            raise ConfigError(f"{path}: extends {base!r}, which extends this one in turn; remove one of the two")
        name = base
    return found[::-1]


def _validate(tree: dict[str, Any], places: dict[Keys, str], layers: Sequence[_Layer]) -> Params:
    if isinstance(tree.get("learn"), dict):
        tree = tree | {"learn": with_fidelity(tree["learn"])}
    try:
        return Params.model_validate_json(json.dumps(tree))  # in JSON, strict models take a list for a tuple
    except ValidationError as error:
        first = error.errors()[0]
        loc = [str(part) for part in first["loc"] if part != "[key]"]  # added for a mapping's wrong key
        for at in range(len(loc) - 1, 0, -1):
            in_list = loc[at - 1].isdigit() and loc[at - 2] in LISTS
            if in_list or (loc[at - 1] in UNIONS and at < len(loc) - 1):
                del loc[at]  # here pydantic has the chosen member of a union, which is no key
        key = ".".join(loc)
        key = key if key.isprintable() and len(key) <= LONGEST else repr(key)[:LONGEST]
        where = _place(tuple(loc), places, layers)
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{where}: unknown key {key}; remove it or correct its name") from None
        given = "" if first["type"] == "missing" else f" (given: {first['input']!r})"
        if len(given) > 80:
            given = ""
        message = first["msg"].removeprefix("Value error, ")
        advice = ADVICE.get(first["type"], "") if isinstance(first["input"], str | int | float) else ""
        raise ConfigError(f"{where}: {key}: {message}{given}{advice}" if key else f"{where}: {message}") from None


def _place(keys: Keys, places: dict[Keys, str], layers: Sequence[_Layer]) -> str:
    """Where a key stands or, where none gives it, the mapping around it; a whole namespace: all that touch it."""
    for length in range(len(keys), 1, -1):
        if keys[:length] in places:
            return places[keys[:length]]
    return " over ".join(str(x.where) for x in reversed(layers) if keys and keys[0] in x.overlay) or "params/"


def _layer(path: Path, *below: str) -> _Layer:
    """Read a file as an overlay, of the mapping under the keys ``below``."""
    document = read_document(path)
    if not isinstance(overlay := document.content, dict):
        raise ConfigError(f"{path}: must hold a mapping")
    for key in reversed(below):
        overlay = {key: overlay}
    return _Layer(path, overlay, {(*below, *keys): f"{path}:{line}" for keys, line in document.lines.items()})


def _merge(base: Any, overlay: Any, replaced: list[Keys], keys: Keys = ()) -> Any:
    """Lay ``overlay`` over ``base``; the keys of values that it replaces whole are added to ``replaced``."""
    whole = not isinstance(base, dict) or not isinstance(overlay, dict)
    whole = whole or ("type" in overlay and overlay["type"] != base.get("type"))
    # options belong to their path: never merge those of another
    whole = whole or (overlay.get("type") == "custom" and overlay.get("path") != base.get("path"))
    if whole:
        replaced.append(keys)
        return overlay
    merged = dict(base)
    for key, value in overlay.items():
        merged[key] = _merge(base[key], value, replaced, (*keys, key)) if key in base else value
    return merged


def digest(value: Any) -> str:
    """Stable SHA-256 of JSON-like content, hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten ``{"a": {"b": 1}}`` to ``{"a.b": 1}``."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat
