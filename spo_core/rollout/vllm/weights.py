"""The policy's tensors under a checkpoint's names and shapes: an engine that read a checkpoint takes no others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import dot_natural_key, revert_weight_conversion

from spo_core.errors import EngineError
from spo_core.policy.adapter import MergedState

Shapes = dict[str, tuple[int, ...]]
_LAYER = re.compile(r".*?\.\d+(?=\.)")  # model.layers.3 of model.layers.3.mlp.experts.gate_up_proj


class CheckpointWeights:
    """Gives, at every call, ``model``'s present tensors under the names and in the shapes that ``save_pretrained``
    writes.

    transformers fuses and renames modules when it loads a checkpoint, the experts of a mixture for one, and goes back
    when it saves. The tensors lie where the model's do, in its dtype; what transformers must rearrange is copied, one
    layer at a time. ``folder`` is the checkpoint that the engine was started from. Raises EngineError where it has
    other names or shapes, of which the engine would keep some as they are.
    """

    def __init__(self, model: PreTrainedModel, folder: Path) -> None:
        self.model, kind = model, type(model).__name__
        plan = MergedState(model).plan
        self._layers = [list(names) for _, names in groupby(sorted(plan, key=dot_natural_key), key=_layer)]
        try:
            whole, layers = _shapes(revert_weight_conversion(model, plan)), _shapes(dict(self._convert(plan)))
        except (ValueError, RuntimeError, NotImplementedError) as error:
            raise EngineError(f"{kind}: transformers cannot give it the names of its checkpoint: {error}") from error
        _check(layers, whole, f"{kind} cannot be handed over a layer at a time")
        _check(whole, checkpoint_shapes(folder), f"{folder} is no checkpoint of this {kind}")

    def __call__(self) -> Iterator[tuple[str, Tensor]]:
        return self._convert(MergedState(self.model))

    def _convert(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for names in self._layers:
            yield from revert_weight_conversion(self.model, {name: state[name] for name in names}).items()


def checkpoint_shapes(folder: Path) -> Shapes:
    """Read the shape of every tensor in a folder's safetensors files."""
    shapes: Shapes = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in names}
    return shapes


def _layer(name: str) -> str:
    layer = _LAYER.match(name)
    return layer[0] if layer else name


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _check(one: Shapes, other: Shapes, words: str) -> None:
    differing = sorted(name for name, _ in one.items() ^ other.items())
    if differing:
        count = len(set(differing))
        raise EngineError(f"{words}: {count} tensors are missing or of another shape, first {differing[0]}")
