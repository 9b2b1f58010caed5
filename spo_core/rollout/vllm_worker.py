"""What vLLM's workers do beside what they know; vLLM mixes the class into its own worker."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class ScaledLogprobs:
    """Log-probs of the distribution that training sees: logits / temperature over the full vocabulary.

    vLLM offers those of the unscaled logits, or those left after top-p, which are renormalised over the nucleus.
    """

    model_runner: Any

    def scale_logprobs(self, temperature: float | str) -> None:
        """From now on; float32 [requests, vocabulary]. A string, because vLLM's HTTP calls carry nothing else."""
        divisor = float(temperature)

        def compute_logprobs(logits: Tensor) -> Tensor:
            return (logits.float() / divisor).log_softmax(dim=-1)

        self.model_runner.sampler.compute_logprobs = compute_logprobs
