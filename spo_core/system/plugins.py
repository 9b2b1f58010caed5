"""Import of a user's own functions and classes by their path, checked against the protocol of their door.

The project's folder is put on Python's path by ``open_project``, in the flow's process and in every process that needs
one of them. A door is a Protocol: one with ``__call__`` takes a function of these parameters, any other takes a class
with these methods. Whoever takes options has one more parameter, ``options`` (a class: of its constructor). Where that
is annotated with a pydantic model they are validated by it and handed over as an instance, else they are handed over as
a dict; who has no such parameter takes none.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from spo_core.errors import ConfigError, type_and_line

_project = Path.cwd()
_imported: set[str] = set()  # modules of the user's project imported so far
_OURS = ("flows", "spo_core", "tasks", "tests")  # never imported anew: other modules hold their classes
_loaded: dict[tuple[str, str, str], Any] = {}


def open_project(root: Path) -> None:
    """Resolve project paths against ``root`` from now on, and import the project's modules anew."""
    global _project
    _project = root.resolve()
    place = str(_project)
    if sys.path[:1] != [place]:
        sys.path[:] = [place, *(p for p in sys.path if p != place)]
    importlib.invalidate_caches()
    for name in _imported:
        sys.modules.pop(name, None)
    _imported.clear()
    _loaded.clear()


def project() -> Path:
    """Return the folder of the project that was opened last, else the current folder."""
    return _project


def load(key: str, path: str, options: Mapping[str, Any], door: type) -> Callable[..., Any]:
    """Import what ``path`` names and bind its options. Raises ConfigError, naming ``key``, where it does not fit
    ``door``.

    A function is given back to be called with the door's parameters, a class to be called with none.
    """
    known = key, path, json.dumps(options, sort_keys=True)
    if known not in _loaded:
        where = f"{key}: {path}"
        found = _attribute(where, path)
        _check_form(where, found, door)
        _loaded[known] = _with_options(where, found, options)
    return _loaded[known]


def source(key: str, path: str) -> Path:
    """Return the file that the module of a path was imported from. Raises ConfigError as ``load``."""
    file = getattr(_module(f"{key}: {path}", path.partition(":")[0]), "__file__", None)
    if file is None:
        raise ConfigError(f"{key}: {path}: its module has no file whose changes could be noticed; give it one")
    return Path(file)


def _module(where: str, name: str) -> Any:
    before = set(sys.modules)
    try:
        module = importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{where}: no module {error.name} in {_project} or the environment; put it there"
            ) from None
        raise ConfigError(f"{where}: importing {name} failed with {type_and_line(error)}; mend the module") from error
    finally:
        _imported.update(n for n in set(sys.modules) - before if _of_the_project(n))
    top = name.partition(".")[0]
    spec = PathFinder.find_spec(top, [str(_project)])
    taken = getattr(sys.modules[top], "__file__", None) or "a module of Python's own"
    ours = top == __name__.partition(".")[0]  # the name is no one else's, whichever checkout it was imported from
    if not ours and spec and spec.origin and Path(taken).resolve() != Path(spec.origin).resolve():
        raise ConfigError(f"{where}: the name {top} is taken by {taken}; rename {spec.origin}")
    return module


def _of_the_project(name: str) -> bool:
    """Whether a module stands in its folder under its own name: not in a virtual environment below it."""
    file, top = getattr(sys.modules.get(name), "__file__", None), name.partition(".")[0]
    if file is None or top in _OURS or not Path(file).is_relative_to(_project):
        return False
    return Path(file).relative_to(_project).parts[0] in (top, f"{top}.py")


def _attribute(where: str, path: str) -> Any:
    name, _, attribute = path.partition(":")
    module = _module(where, name)
    if not hasattr(module, attribute):
        there = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == name]
        raise ConfigError(f"{where}: module {name} has no {attribute}; it has {', '.join(there) or 'no function'}")
    return getattr(module, attribute)


def _check_form(where: str, found: Any, door: type) -> None:
    methods = [name for name, value in vars(door).items() if inspect.isfunction(value) and name[0] != "_"]
    if not methods:
        if not callable(found) or inspect.isclass(found):
            raise ConfigError(f"{where} is {_kind(found)}; {door.__name__} takes a function")
        _check_parameters(where, found, door.__call__)
        return
    if not inspect.isclass(found):
        raise ConfigError(f"{where} is {_kind(found)}; {door.__name__} takes a class")
    for name in methods:
        if not inspect.isfunction(getattr(found, name, None)):
            raise ConfigError(f"{where} has no method {name}; {door.__name__} has {', '.join(methods)}")
        _check_parameters(f"{where}.{name}", getattr(found, name), getattr(door, name))
    _check_parameters(where, found, lambda self: None)


def _kind(found: Any) -> str:
    return (
        "a class" if inspect.isclass(found) else "a function" if callable(found) else f"of type {type(found).__name__}"
    )


def _check_parameters(where: str, found: Any, like: Any) -> None:
    """Check that ``found`` takes the parameters of method ``like``, in order; further ones need a default."""
    wanted = [n for n in inspect.signature(like).parameters if n != "self"]
    signature = _signature(where, found)
    if inspect.iscoroutinefunction(found) or inspect.isgeneratorfunction(found):
        raise ConfigError(f"{where} is a coroutine or generator; make it a plain function")
    given = [p for p in signature.parameters.values() if p.name not in ("self", "options")]
    positional = [p.name for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    more = [p for p in given if p.name not in wanted and p.default is p.empty and p.kind not in variable]
    if positional[: len(wanted)] != wanted or more:
        raise ConfigError(
            f"{where} takes ({', '.join(str(p).partition(':')[0] for p in given)}); "
            f"its parameters must be ({', '.join(wanted)}) and, if it has any, options"
        )


def _signature(where: str, found: Any) -> inspect.Signature:
    try:
        return inspect.signature(found, eval_str=True)
    except NameError as error:
        raise ConfigError(f"{where}: an annotation cannot be read ({error}); import what it names") from None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: its parameters cannot be read ({error}); write it in Python") from None


def _with_options(where: str, found: Any, options: Mapping[str, Any]) -> Any:
    parameter = _signature(where, found).parameters.get("options")
    if parameter is None:
        if options:
            raise ConfigError(f"{where} takes no options, and is given {', '.join(options)}; leave them out")
        return found
    model = parameter.annotation
    if not (inspect.isclass(model) and issubclass(model, BaseModel)):
        return partial(found, options=dict(options))
    unknown = [n for n in options if n not in model.model_fields] if model.model_config.get("extra") is None else []
    if unknown:
        raise ConfigError(f"{where} takes no option {unknown[0]}; it takes {', '.join(model.model_fields)}")
    try:
        return partial(found, options=model.model_validate_json(json.dumps(options)))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(["options", *map(str, first["loc"])])
        raise ConfigError(f"{where}: {name}: {first['msg']}") from None
