"""A second device without a second device: tensors that say they are on ``other:0`` and are computed on the CPU.

Within ``OtherDevice()`` tensors can be made on it and moved to it and back, and an operator that is given tensors of
both devices raises, as on a GPU; tensors of no dimension may mix, as there. Results are those of the CPU but for
rounding, as operators for which torch has a kernel of CPUs alone are divided into others. ``reads`` counts what is
brought from the device to Python, each of which would have a GPU waited for.
"""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "other"


class _Module(_DummyBackendModule):
    """``torch.other``, as far as recomputing layers asks for it."""

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def device(self, device: Any) -> Any:
        return nullcontext()

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
DEVICE = torch.device(NAME, 0)
MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
reads: Counter[str] = Counter()


class OnOther(torch.Tensor):
    """Says that it is on the device; ``held`` has its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnOther:
        more = {"strides": held.stride(), "storage_offset": held.storage_offset(), "device": DEVICE}
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, **more)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return compute(operator, args, kwargs or {})

    def tolist(self) -> Any:
        reads["tolist"] += 1
        return self.held.tolist()


class OtherDevice(TorchDispatchMode):
    """The context in which the device is there."""

    def __enter__(self) -> OtherDevice:
        self._made = _Made()
        self._made.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._made.__exit__(*error)

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        return compute(operator, args, kwargs or {})


class _Made(TorchFunctionMode):
    """``torch.tensor`` fills a tensor on the CPU and moves it where no dispatch mode can see it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == NAME:
            return torch.tensor(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return function(*args, **kwargs)


def compute(operator, args: tuple, kwargs: dict) -> Any:
    leaves = tree_leaves((args, kwargs))
    there = [x for x in leaves if isinstance(x, OnOther)]
    here = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, OnOther)]
    moves = operator in MOVES or operator.overloadpacket is torch.ops.aten.to
    if there and not moves and any(x.dim() for x in here):
        raise RuntimeError(f"{operator}: a tensor on the CPU among those on {DEVICE}")
    named = [x for x in leaves if isinstance(x, torch.device)]
    stays = named[0].type == NAME if named else bool(there)
    if there and operator is torch.ops.aten._local_scalar_dense.default:
        reads["item"] += 1
    elif there and not stays:
        reads["cpu"] += 1
    out = operator(*tree_map(_plain, args), **tree_map(_plain, kwargs))
    known = {id(x.held): x for x in there} | {id(x): x for x in here}  # in-place operators return what they were given

    def place(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if named and stays and not isinstance(known.get(id(x)), OnOther):
            return OnOther(x.clone() if id(x) in known else x)
        return known[id(x)] if id(x) in known else OnOther(x) if stays else x

    return tree_map(place, out)


def _plain(x: Any) -> Any:
    if isinstance(x, OnOther):
        return x.held
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == NAME else x
