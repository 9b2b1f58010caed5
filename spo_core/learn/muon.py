"""Muon in float32, matrices of one shape orthogonalised as one batch.

Makes the update of ``torch.optim.Muon`` (same coefficients, momentum, learning-rate rule), which orthogonalises matrix
by matrix in bfloat16: on a CPU more than half of a warm-up step of the embedded policy (340 of 600 ms).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrix; (batch, rows, columns), same shape back."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, then orthogonalisation; for two-dimensional weights only, without weight decay."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for param in group["params"]:
                if param.grad is not None:
                    by_shape.setdefault(param.shape, []).append(param)
            for (rows, columns), params in by_shape.items():
                updates = torch.stack([self._momentum(p, group["momentum"]) for p in params])
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                for param, update in zip(params, orthogonalize(updates), strict=True):
                    param.sub_(update, alpha=scale)

    def _momentum(self, param: Tensor, momentum: float) -> Tensor:
        """Update the running mean of the gradient; returns its Nesterov look-ahead."""
        assert param.grad is not None
        state = self.state[param]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(param)
        state["momentum_buffer"].lerp_(param.grad, 1 - momentum)
        return param.grad.lerp(state["momentum_buffer"], momentum)
