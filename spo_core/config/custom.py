"""``{type: custom, path: "module:name", options: {...}}``: a user's own functions and classes, and names for ours.

docs/extending.md describes both.
"""

from __future__ import annotations

from keyword import iskeyword
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

from spo_core.config.namespace import Namespace

OURS = {  # "<key>.<name>" of a choice that the project ships -> its path
    "learn.loss.cispo": "spo_core.learn.losses:cispo",
    "learn.loss.gspo": "spo_core.learn.losses:gspo",
    "run.trackers.wandb": "spo_core.observe.trackers.wandb:WandbTracker",
    "run.trackers.tensorboard": "spo_core.observe.trackers.tensorboard:TensorBoardTracker",
}


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
    """Module and name within it, as ``my_module:name``."""
    options: dict[str, Any] = {}
    """Options passed to it as ``options``; validated where it declares a pydantic model for them."""


def named(key: str) -> BeforeValidator:
    """Reads ``{type: <name in OURS>, ...}`` as the custom choice that it stands for, with its other keys as options."""

    def read(given: Any) -> Any:
        if not isinstance(given, dict) or f"{key}.{given.get('type')}" not in OURS:
            return given
        options = {name: value for name, value in given.items() if name != "type"}
        return {"type": "custom", "path": OURS[f"{key}.{given['type']}"], "options": options}

    return BeforeValidator(read)
