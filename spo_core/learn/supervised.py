"""Supervised warm-up on demonstrations: Muon on the matrices, AdamW on the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from spo_core.config import WarmupParams
from spo_core.learn.muon import Muon
from spo_core.policy.architecture import layers_of
from spo_core.problems.base import ProblemSet, Question
from spo_core.problems.mixture import encode_questions

IGNORED = -100


def encode_demonstrations(
    rows: Sequence[Question],
    problem: ProblemSet,
    tokenizer: PreTrainedTokenizerFast,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids and labels, each (rows, width); labels cover the completion and its end token only."""
    encoded = []
    prompts = encode_questions(problem, tokenizer, rows)
    for row, prompt in zip(rows, prompts, strict=True):
        text = problem.demonstration(row, rng)
        completion = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        encoded.append((prompt, [*completion, tokenizer.eos_token_id]))
    width = max(len(p) + len(c) for p, c in encoded)
    ids = torch.full((len(encoded), width), tokenizer.pad_token_id)
    labels = torch.full((len(encoded), width), IGNORED)
    for r, (prompt, completion) in enumerate(encoded):
        ids[r, : len(prompt) + len(completion)] = torch.tensor(prompt + completion)
        labels[r, len(prompt) : len(prompt) + len(completion)] = torch.tensor(completion)
    return ids, labels


class Warmup:
    """Optimizers and schedule of the warm-up; ``step`` is one optimizer step on one batch."""

    def __init__(self, model: PreTrainedModel, params: WarmupParams) -> None:
        self.model, self.params = model, params
        inner = {id(p) for layer in layers_of(model) for p in layer.parameters() if p.ndim == 2}
        matrices = [p for p in model.parameters() if id(p) in inner]
        rest = [p for p in model.parameters() if id(p) not in inner]
        self.optimizers = [
            Muon(matrices, lr=params.matrix_learning_rate),
            torch.optim.AdamW(rest, lr=params.learning_rate, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        self.peaks = [params.matrix_learning_rate, params.learning_rate]

    def step(self, ids: torch.Tensor, labels: torch.Tensor, number: int) -> float:
        """Make optimizer step ``number`` (from 0); returns the mean cross-entropy before it, in nats a token."""
        self.model.train()
        ids, labels = ids.to(self.model.device), labels.to(self.model.device)
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * schedule(number, self.params.steps)
        logits = self.model(input_ids=ids).logits[:, :-1]  # right-padded and causal: padding is never seen
        loss = cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item()


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear over the first 5 %, then a cosine to a tenth."""
    rise = max(1, steps // 20)
    if step < rise:
        return (step + 1) / rise
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
