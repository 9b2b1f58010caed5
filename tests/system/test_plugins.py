"""What a project's own modules are refused for, and that they are read anew when a project is opened."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Protocol

import pytest
from pydantic import BaseModel

from spo_core.errors import ConfigError
from spo_core.system.plugins import load, open_project, project, source


class Function(Protocol):
    def __call__(self, tree: object, values: object) -> object: ...


class Class(Protocol):
    def start(self, run: object) -> None: ...

    def log(self, row: object) -> None: ...


MODULE = """
from pydantic import BaseModel, ConfigDict
import json as taken_along

number = 3
class Options(BaseModel):
    scale: float = 2.0
    names: list[str] = []
class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    scale: float
def good(tree, values): return tree, values
def with_default(tree, values, more=1): return tree, values, more
def modelled(tree, values, options: Options): return options
def strict(tree, values, *, options: Strict): return options
def mapped(tree, values, options): return options
def swapped(values, tree): pass
def fewer(tree): pass
def many(tree, values, rest): pass
def only_keyword(tree, *, values): pass
def unreadable(tree, values: "Nowhere"): pass
async def waits(tree, values): pass
def gives(tree, values): yield 1
class Tracker:
    def start(self, run): pass
    def log(self, row): pass
class Optioned(Tracker):
    def __init__(self, options: Options): self.options = options
class Lacking:
    def start(self, run): pass
class Otherwise(Tracker):
    def log(self, line): pass
class Demanding(Tracker):
    def __init__(self, where): pass
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A project with a module ``mine_<n>`` of the given text; what it imported is forgotten afterwards."""
    before = project()
    monkeypatch.setattr(sys, "path", list(sys.path))

    def make(text: str, name: str = "mine") -> Path:
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        open_project(tmp_path)
        return path

    yield make
    open_project(before)


def test_a_function_is_given_back_with_its_options_bound(mine):
    mine(MODULE)
    assert load("k", "mine:good", {}, Function)(1, 2) == (1, 2)
    assert load("k", "mine:with_default", {}, Function)(1, 2) == (1, 2, 1)
    options = load("k", "mine:modelled", {"scale": 3, "names": ["a"]}, Function)(1, 2)
    assert isinstance(options, BaseModel) and (options.scale, options.names) == (3.0, ["a"])
    assert load("k", "mine:modelled", {}, Function)(1, 2).scale == 2.0
    assert load("k", "mine:mapped", {"any": [1]}, Function)(1, 2) == {"any": [1]}
    assert load("k", "mine:mapped", {}, Function)(1, 2) == {}
    assert load("k", "mine:Tracker", {}, Class)().log({}) is None
    assert load("k", "mine:Optioned", {"scale": 5}, Class)().options.scale == 5.0


@pytest.mark.parametrize(
    ("path", "options", "door", "says"),
    [
        ("nowhere:f", {}, Function, "no module nowhere in "),
        ("mine.deeper:f", {}, Function, "no module mine.deeper in "),
        ("mine:absent", {}, Function, "module mine has no absent; it has Options, Strict, good"),
        ("mine:number", {}, Function, "is of type int; Function takes a function"),
        ("mine:taken_along", {}, Function, "is of type module; Function takes a function"),
        ("mine:Tracker", {}, Function, "is a class; Function takes a function"),
        ("mine:swapped", {}, Function, "takes (values, tree); its parameters must be (tree, values)"),
        ("mine:fewer", {}, Function, "takes (tree); its parameters must be (tree, values)"),
        ("mine:many", {}, Function, "takes (tree, values, rest); its parameters must be (tree, values)"),
        ("mine:only_keyword", {}, Function, "its parameters must be (tree, values)"),
        ("mine:unreadable", {}, Function, "an annotation cannot be read"),
        ("mine:waits", {}, Function, "make it a plain function"),
        ("mine:gives", {}, Function, "make it a plain function"),
        ("mine:good", {"scale": 1}, Function, "takes no options, and is given scale; leave them out"),
        ("mine:modelled", {"sclae": 1}, Function, "takes no option sclae; it takes scale, names"),
        ("mine:modelled", {"scale": "much"}, Function, "options.scale: Input should be a valid number"),
        ("mine:strict", {}, Function, "options.scale: Field required"),
        ("mine:strict", {"scale": 1, "more": 2}, Function, "options.more: Extra inputs are not permitted"),
        ("mine:good", {}, Class, "is a function; Class takes a class"),
        ("mine:Lacking", {}, Class, "has no method log; Class has start, log"),
        ("mine:Otherwise", {}, Class, "mine:Otherwise.log takes (line); its parameters must be (row)"),
        ("mine:Demanding", {}, Class, "takes (where); its parameters must be ()"),
        ("mine:Tracker", {"a": 1}, Class, "takes no options, and is given a"),
    ],
)
def test_refused_with_one_or_two_lines_that_name_key_and_path(mine, path, options, door, says):
    mine(MODULE)
    with pytest.raises(ConfigError) as refused:
        load("credit.advantage", path, options, door)
    message = str(refused.value)
    assert message.startswith(f"credit.advantage: {path}") and says in message and message.count("\n") <= 1, message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("def f(:", "SyntaxError: "),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("from numpy import no_such_thing", "ImportError: cannot import name"),
        ("raise ValueError('two\\nlines')", "ValueError: two; mend"),
    ],
)
def test_a_module_that_cannot_be_imported_says_why(mine, text, says):
    mine(text)
    with pytest.raises(ConfigError, match="mine:f: importing mine failed with ") as refused:
        load("learn.loss", "mine:f", {}, Function)
    assert says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["random", "tests"])
def test_a_name_that_another_module_has_is_refused(mine, name):
    mine(MODULE, name)
    with pytest.raises(ConfigError, match=f"the name {name} is taken by .*; rename "):
        load("k", f"{name}:good", {}, Function)


def test_an_opened_project_is_read_anew_with_what_its_modules_import(mine):
    mine("from helper import number\ndef f(tree, values): return number")
    mine("number = 1", "helper")
    assert load("k", "mine:f", {}, Function)(0, 0) == 1
    mine("number = 2  # longer", "helper")
    assert load("k", "mine:f", {}, Function)(0, 0) == 2


def test_packages_and_the_environment_serve_too(mine, tmp_path):
    path = mine("def f(tree, values): return 7", "package.inner")
    assert load("k", "package.inner:f", {}, Function)(0, 0) == 7 and source("k", "package.inner:f") == path
    assert load("k", "operator:add", {}, type("Add", (), {"__call__": lambda self, a, b: 0}))(1, 2) == 3


def test_what_lies_below_the_project_under_another_name_is_left_alone(mine, tmp_path, monkeypatch):
    """A virtual environment in the project's folder: its packages cannot be imported twice."""
    packages = tmp_path / ".venv" / "lib"
    packages.mkdir(parents=True)
    (packages / "installed_there.py").write_text("")
    monkeypatch.syspath_prepend(packages)
    mine("import installed_there\ndef f(tree, values): return installed_there")
    first = load("k", "mine:f", {}, Function)(0, 0)
    open_project(tmp_path)
    assert load("k", "mine:f", {}, Function)(0, 0) is first
    sys.modules.pop("installed_there")
