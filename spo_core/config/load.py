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
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from spo_core.config.learn import with_fidelity
from spo_core.config.params import Params
from spo_core.errors import ConfigError

NAMESPACES = ("run", "data", "policy", "rollout", "verify", "credit", "learn", "evaluate")
UNIONS = ("init", "partition", "value", "advantage", "mask", "loss", "kl", "backend", "engine", "task_runner")

LISTS = ("reward", "trackers")  # keys of lists whose members are of a union


def load_params(
    root: Path, preset: str | None = None, overrides: tuple[str, ...] = (), suite: str | None = None
) -> Params:
    """Read ``root/params``, lay a suite, a preset and ``key=value`` overrides over it, and validate.

    With ``suite`` given, the preset's own settings of ``evaluate`` are ignored. Raises ConfigError naming the file and
    the key.
    """
    tree: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name in NAMESPACES:
        path = root / "params" / f"{name}.yaml"
        content = _read_yaml(path)
        if set(content) != {name}:
            raise ConfigError(f"{path}: must hold the one top-level key {name!r}, found {sorted(content)}")
        tree[name] = content[name]
        origin[name] = str(path)
    layers = _preset(root / "params" / "presets", preset) if preset else []
    if suite is not None:
        layers = [(path, {k: v for k, v in overlay.items() if k != "evaluate"}) for path, overlay in layers]
    asked = [(_origin(override), _override(override)) for override in overrides]
    named = suite or _named_suite([*layers, *asked])
    if named not in (None, tree["evaluate"].get("suite")):
        path = _suite(root / "params" / "suites", named)
        layers = [(path, {"evaluate": _read_yaml(path)}), *layers]
    for where, overlay in [*layers, *asked]:
        if isinstance(where, Path) and "contexts" in (overlay.get("evaluate") or {}):
            tree["evaluate"] = {k: v for k, v in tree["evaluate"].items() if k != "contexts"}  # replaced, not merged
        tree = _merge(tree, overlay)
        for name in overlay:
            origin[name] = f"{where} over {origin.get(name, '')}".removesuffix(" over ")
    params = _validate(tree, origin)
    if suite is None:
        _check_positions(params)
    return params


def _named_suite(layers: Sequence[tuple[Path | str, dict[str, Any]]]) -> object:
    """Return ``evaluate.suite`` of the last layer that has one, else None."""
    named = [
        o["evaluate"]["suite"] for _, o in layers if isinstance(o.get("evaluate"), dict) and "suite" in o["evaluate"]
    ]
    return named[-1] if named else None


def _check_positions(params: Params) -> None:
    """Raise ConfigError where a context is longer than the positions of a policy that is made from scratch."""
    init, longest = params.policy.init, max(params.evaluate.contexts.values())
    if init.type == "scratch" and longest > init.max_positions:
        raise ConfigError(
            f"evaluate.contexts {longest} exceeds policy.init.max_positions {init.max_positions}; lower "
            "it, or evaluate in another evaluate.suite"
        )


def _origin(override: str) -> str:
    """Name an override in messages, without its value, which may be a secret that belongs elsewhere."""
    return f"--set {override.partition('=')[0]}"


def _override(text: str) -> dict[str, Any]:
    """Parse ``a.b=1`` to ``{"a": {"b": 1}}``."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {text!r}: write it as namespace.key=value")
    tree = _parse(_origin(text), value)
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return tree


def _suite(folder: Path, name: object) -> Path:
    known = sorted(p.stem for p in folder.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"evaluate.suite: no suite {name!r} in {folder}; there are: {', '.join(known)}")
    return folder / f"{name}.yaml"


def _preset(folder: Path, preset: str) -> list[tuple[Path | str, dict[str, Any]]]:
    """Read a preset and those it extends, base first. Raises ConfigError for unknown names and cycles."""
    known = sorted(p.stem for p in folder.glob("*.yaml"))
    if preset not in known:
        raise ConfigError(f"no preset {preset!r} in {folder}; there are: {', '.join(known)}")
    found: list[tuple[Path | str, dict[str, Any]]] = []
    name: str | None = preset
    while name is not None:
        path = folder / f"{name}.yaml"
        overlay = _read_yaml(path)
        base = overlay.pop("extends", None)
        found.append((path, overlay))
        if base is not None and not (isinstance(base, str) and (folder / f"{base}.yaml").is_file()):
            known += sorted(f"base/{p.stem}" for p in (folder / "base").glob("*.yaml"))
            raise ConfigError(f"{path}: extends {base!r}, which is no preset; there are: {', '.join(known)}")
        if base is not None and folder / f"{base}.yaml" in (p for p, _ in found):
            raise ConfigError(f"{path}: extends {base!r}, which extends this one in turn; remove one of the two")
        name = base
    return found[::-1]


def _validate(tree: dict[str, Any], origin: dict[str, str]) -> Params:
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
        where = origin.get(loc[0], "params/") if loc else "params/"
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{where}: unknown key {key}; remove it or correct its name") from None
        given = "" if first["type"] == "missing" else f" (given: {first['input']!r})"
        if len(given) > 80:
            given = ""
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{where}: {key}: {message}{given}" if key else f"{where}: {message}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; run from the project's folder")
    content = _parse(str(path), path.read_text())
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold a mapping")
    return content


def _parse(where: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
        at = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ConfigError(f"{where}: not valid YAML: {problem or type(error).__name__}{at}") from None
    return _floats(value)


def _floats(value: Any) -> Any:
    """Convert texts such as ``1e-4`` to floats: YAML 1.1 takes them for text, as they have no point."""
    if isinstance(value, dict):
        return {k: _floats(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_floats(v) for v in value]
    if isinstance(value, str) and value[:1].isdigit() and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _merge(base: Any, overlay: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(overlay, dict):
        return overlay
    if "type" in overlay and overlay["type"] != base.get("type"):
        return overlay
    if overlay.get("type") == "custom" and overlay.get("path") != base.get("path"):
        return overlay  # options belong to their path: never merge those of another
    merged = dict(base)
    for key, value in overlay.items():
        merged[key] = _merge(base[key], value) if key in base else value
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
