"""A seeded random projection of gradients that keeps inner products: CountSketch.

Every parameter goes, with a random sign, to one of ``width`` places (Charikar, Chen and Farach-Colton 2002). Inner
products stay unbiased over seeds; the squared length of a vector is off by ``relative_error`` at one standard
deviation. It needs no matrix: place and sign of a parameter are hashes of its number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

WIDTH = 65_536  # 0.55 % of a squared length, and 256 KiB a gradient
_CHUNK = 1 << 24  # parameters hashed at a time


def relative_error(width: int) -> float:
    """Standard deviation of a sketched squared length over the true one, at most: sqrt(2 / width)."""
    return math.sqrt(2 / width)


def sketch(gradient: Iterable[Tensor], seed: int, width: int = WIDTH) -> Tensor:
    """Project a gradient, given as one tensor a parameter, to float32 [width] on the CPU.

    The places depend on ``seed`` and on the number of each entry among all, so equal shapes in equal order are needed.
    """
    total: Tensor | None = None
    start = 0
    for tensor in gradient:
        flat = tensor.detach().reshape(-1)
        if total is None:
            total = torch.zeros(width, dtype=torch.float64, device=flat.device)
        for values in flat.split(_CHUNK):
            numbers = torch.arange(start, start + len(values), device=flat.device, dtype=torch.int64)
            hashed = _mixed(numbers + seed * 0x5851F42D4C957F2D % (1 << 62))
            signs = (hashed & 1) * 2 - 1
            total.index_add_(0, (hashed >> 1).remainder(width), values.double() * signs)
            start += len(values)
    if total is None:
        raise ValueError("a gradient of no parameter")
    return total.float().cpu()


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's finaliser over int64, which wraps around; shifts are logical."""
    x = (x ^ _shifted(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)
