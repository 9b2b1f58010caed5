"""``{type: custom, path: "module:name", options: {...}}``: what a project brings itself; see docs/extending.md."""

from __future__ import annotations

from keyword import iskeyword
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from spo_core.config.base import Namespace


def _well_formed(path: str) -> str:
    module, colon, name = path.partition(":")
    words = [*module.split("."), name]
    if not colon or words[-2] == "py" or not all(word.isidentifier() and not iskeyword(word) for word in words):
        raise ValueError(f"{path!r} is no path of a function: write it as my_module:function, or package.module:name")
    return path


class CustomParams(Namespace):
    """A function or class of the project's own, imported from its folder or from the environment."""

    type: Literal["custom"]
    path: Annotated[str, AfterValidator(_well_formed)]
    """``my_module:name``."""
    options: dict[str, Any] = {}
    """What it is given as ``options``; validated where it declares a pydantic model for them."""
