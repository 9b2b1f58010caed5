"""The extension of vLLM's workers: vLLM mixes its class into its own worker."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class PolicyWorker:
    """Serves a policy that changes, with the log-probs that training sees. Arguments may be strings, because vLLM's
    HTTP calls carry nothing else."""

    model_runner: Any
    vllm_config: Any
    reload_weights: Any

    def scale_logprobs(self, temperature: float | str) -> None:
        """Make vLLM return log-probs of logits / temperature over the full vocabulary, float32 [requests, vocabulary].

        vLLM itself offers log-probs of the unscaled logits, or those left after top-p, which are renormalised over the
        nucleus.
        """
        divisor = float(temperature)

        def compute_logprobs(logits: Tensor) -> Tensor:
            return (logits.float() / divisor).log_softmax(dim=-1)

        self.model_runner.sampler.compute_logprobs = compute_logprobs

    def seed_sampling(self, seed: int | str) -> None:
        """Begin the noise of requests without a seed anew; it comes from torch's generator of the device."""
        torch.manual_seed(int(seed))

    def load_policy(self, **source: Any) -> None:
        """Replace the weights, by what vLLM's ``reload_weights`` takes. Raises ValueError where a
        parameter got none, of which vLLM itself only warns; parameters of quantised models may have no tensor."""
        from vllm.platforms import current_platform

        model = self.model_runner.get_model()
        load, loaded = model.load_weights, None

        def recording(weights: Any) -> Any:
            nonlocal loaded
            loaded = load(weights)
            return loaded

        model.load_weights = recording
        if current_platform.is_cpu():
            forget_experts_kernels(model)
        try:
            self.reload_weights(**source)
        finally:
            del model.load_weights
        if current_platform.is_cpu():
            pack_heads(model)
        if loaded is not None and self.vllm_config.model_config.quantization is None:
            old = sorted({name for name, _ in model.named_parameters()} - set(loaded))
            if old:
                raise ValueError(f"{len(old)} parameters have no new weights, first {old[0]}")


def forget_experts_kernels(model: torch.nn.Module) -> None:
    """Have vLLM make the experts' kernels again: 0.32 lays experts out for the CPU's kernel when it makes the kernel,
    and not when it loads new weights."""
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if hasattr(method, "moe_kernel"):
            method.moe_kernel = None


def pack_heads(model: torch.nn.Module) -> None:
    """Pack the heads' weights again. On CPUs vLLM 0.32 multiplies by a packed copy of them, which stays as it was where
    a head is tied to the embedding, because no tensor is loaded for it."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
