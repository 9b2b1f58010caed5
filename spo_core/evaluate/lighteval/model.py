"""The policy as a transformers model of lighteval, sampled as in training. Runs in lighteval's environment."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from lighteval.models.model_input import GenerationParameters
from lighteval.models.model_output import Batch, ModelResponse
from lighteval.models.transformers.transformers_model import TransformersModel, TransformersModelConfig
from lighteval.tasks.requests import Doc
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast, StoppingCriteriaList

from spo_core.config import digest
from spo_core.evaluate.lighteval.endings import Endings
from spo_core.evaluate.lighteval.exchange import POLICY, Request
from spo_core.policy.tokenizer import load_tokenizer
from spo_core.rollout.seeds import derive_seed

log = logging.getLogger("spo_core.evaluate")


class PolicyModel(TransformersModel):
    """lighteval's model with four behaviours replaced that would change results silently (lighteval 0.13).

    - Its tokenizer is whatever transformers makes of the checkpoint; here it is training's.
    - It caches predictions by path, and uses them again when the weights there have changed; here nothing is cached.
    - With several samples a question, its stop criterion looks at the first rows of a batch alone, and cuts off all
      others when those have ended; here a completion ends at its own stop token.
    - Only the tokenizer's end token stops, and generation defaults of the checkpoint or of transformers (top_k 50)
      apply; here training's stop tokens and strings stop, and only temperature and top_p shape the sampling.
    """

    disable_tqdm = True

    @classmethod
    def make(
        cls,
        model: PreTrainedModel,
        request: Request,
        endings: Endings,
        *,
        cache_dir: str,
        progress: Callable[[int], None],
    ) -> PolicyModel:
        """Wrap a loaded policy; ``progress`` is called with the number of completions sampled so far."""
        self = cls.from_model(
            model,
            TransformersModelConfig(
                model_name=POLICY,  # relative to the working directory
                batch_size=max(1, request.batch_size // request.samples),
                max_length=request.max_length,
                add_special_tokens=False,
                override_chat_template=False,
                device="cpu",
                cache_dir=cache_dir,
                generation_parameters=GenerationParameters(temperature=request.temperature, top_p=request.top_p),
            ),
        )
        model.generation_config = GenerationConfig(
            do_sample=True,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=0,
            eos_token_id=sorted(endings.stop_ids),
            pad_token_id=min(endings.stop_ids),
        )
        self.tokenizer.split_special_tokens = request.special_as_text
        self.endings, self.seed, self.progress, self.done = endings, request.seed, progress, 0
        return self

    def _create_auto_tokenizer(self) -> PreTrainedTokenizerFast:
        tokenizer = load_tokenizer(self.config.model_name)
        tokenizer.padding_side = tokenizer.truncation_side = "left"
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.model_max_length = self.max_length
        return tokenizer

    def greedy_until(self, docs: list[Doc]) -> list[ModelResponse]:
        return self._padded_greedy_until(docs)

    def _generate_padded(
        self,
        batch: Batch,
        max_new_tokens: int,
        stop_tokens: list[str],
        returns_logits: bool | None = False,
        num_samples: int = 1,
    ) -> list[ModelResponse]:
        """Sample a batch of left-padded prompts (prompts, prompt tokens); output ids end with the stop token, or where
        the limit cut them off.

        The noise is seeded by the batch's prompts, so a longer context continues the completions of a shorter one.
        """
        prompt_tokens = batch.input_ids.shape[1]
        at_string = [self._at_stop_string(prompt_tokens)] if self.endings.strings else []
        torch.manual_seed(derive_seed(self.seed, "evaluate", digest(batch.input_ids.tolist())))
        rows = self.model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.input_mask,
            max_new_tokens=max_new_tokens,
            num_return_sequences=num_samples,
            stopping_criteria=StoppingCriteriaList(at_string),
        )
        completions = rows[:, prompt_tokens:].unflatten(0, (-1, num_samples))  # (prompts, samples, tokens)
        responses = []
        for prompt, mask, samples in zip(batch.input_ids, batch.input_mask, completions.tolist(), strict=True):
            ids = [self.endings.until(sample) for sample in samples]
            texts = [self.tokenizer.decode(sample, skip_special_tokens=True) for sample in ids]
            responses.append(ModelResponse(input_tokens=prompt[mask.bool()].tolist(), text=texts, output_tokens=ids))
        self.done += len(rows)
        self.progress(self.done)
        log.info("%d completions; limit %d tokens", self.done, max_new_tokens)
        return responses

    def _at_stop_string(self, prompt: int) -> Callable[..., torch.Tensor]:
        """Criterion: which rows have a stop string at their end, behind ``prompt`` tokens. That of transformers fails
        with tokenizers that know no letters."""
        strings = self.endings.strings
        window = 4 * max(map(len, strings))  # tokens: a character has at most four

        def ended(rows: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            tails = self.tokenizer.batch_decode(rows[:, prompt:][:, -window:], skip_special_tokens=True)
            return torch.tensor([any(string in tail for string in strings) for tail in tails])

        return ended
