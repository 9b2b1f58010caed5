"""A policy on vLLM servers as a model of lighteval. Runs in lighteval's environment, which has no vLLM."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from lighteval.models.abstract_model import LightevalModel, ModelConfig
from lighteval.models.model_input import GenerationParameters
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.prompt_manager import PromptManager
from lighteval.tasks.requests import Doc
from lighteval.utils.cache_management import SampleCache
from transformers import PreTrainedTokenizerFast

from spo_core.evaluate.lighteval import serving
from spo_core.evaluate.lighteval.endings import Endings
from spo_core.evaluate.lighteval.exchange import POLICY, Servers
from spo_core.evaluate.lighteval.exchange import Request as Cell
from spo_core.rollout.engine import Request
from spo_core.rollout.seeds import derive_seed


class ServedModel(LightevalModel):
    """A model of lighteval that asks servers; a completion's seed comes from its question and number alone."""

    is_async = True

    def __init__(
        self,
        cell: Cell,
        servers: Servers,
        tokenizer: PreTrainedTokenizerFast,
        endings: Endings,
        *,
        cache_dir: str,
        progress: Callable[[int], None],
    ) -> None:
        """Connect nothing yet; ``progress`` is called with the number of completions sampled so far."""
        self.cell, self.servers, self.endings, self.progress, self.done = cell, servers, endings, progress, 0
        self.config = ModelConfig(
            model_name=POLICY,
            cache_dir=cache_dir,
            generation_parameters=GenerationParameters(temperature=cell.temperature, top_p=cell.top_p),
        )
        self.prompt_manager = PromptManager(use_chat_template=False, tokenizer=tokenizer)
        self._tokenizer = tokenizer
        self._cache = SampleCache(self.config)  # the pipeline wants one; it stays empty

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self._tokenizer

    @property
    def add_special_tokens(self) -> bool:
        return False

    @property
    def max_length(self) -> int:
        return self.cell.max_length

    async def greedy_until(self, docs: list[Doc]) -> list[ModelResponse]:
        prompts = [self.tok_encode(self.prompt_manager.prepare_prompt(doc)) for doc in docs]
        requests = [
            Request(
                request_id=at * self.cell.samples + number,
                token_ids=np.asarray(ids, np.int32),
                max_tokens=doc.generation_size,
                seed=derive_seed(self.cell.seed, "evaluate", doc.specific["question_id"], number),
                tree=doc.specific["question_id"],
            )
            for at, (doc, ids) in enumerate(zip(docs, prompts, strict=True))
            for number in range(self.cell.samples)
        ]
        completions = await serving.ask(self.servers, requests, self._count)
        sampled = [self.endings.until(completion.token_ids.tolist()) for completion in completions]
        texts = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in sampled]
        n = self.cell.samples
        return [
            ModelResponse(
                input_tokens=ids, text=texts[at * n : (at + 1) * n], output_tokens=sampled[at * n : (at + 1) * n]
            )
            for at, ids in enumerate(prompts)
        ]

    def loglikelihood(self, docs: list[Doc]) -> list[ModelResponse]:
        raise NotImplementedError("a policy is asked for completions only")

    loglikelihood_rolling = loglikelihood

    def _count(self) -> None:
        self.done += 1
        self.progress(self.done)
