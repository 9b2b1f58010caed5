r"""Prompt templates, character by character as published, and how prompts are encoded.

A prompt is encoded with ``add_special_tokens=False``: nothing is added to it silently, in training, rollouts or
evaluation. Where the policy expects a BOS token the template's own text begins with it (``bos: written``). A completion
ends with the policy's own EOS token, which is sampled and trained, and never part of the text; or with a stop string.
Source of all but ``arithmetic`` and ``plain``: docs/reference.md 3.5; ``math_task_boxed`` is the Rho runs' template for
policies that box their answers, as those trained on MATH do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from spo_core.config import JsonlParams
from spo_core.errors import ConfigError, DataError

AnswerForm = Literal["hashes", "boxed"]
Bos = Literal["none", "written"]

SLOT = "{question}"
PUBLISHED_STOP = ("\n\n\nProblem:",)


@dataclass(frozen=True, slots=True)
class Template:
    """Text around a question, and how a completion is to state its answer."""

    name: str
    text: str
    """Holds ``{question}`` once."""
    answer: AnswerForm
    """``hashes``: after ``####``; ``boxed``: in the last box, else in a closing sentence."""
    bos: Bos = "none"
    """``none``: no BOS token stands before the prompt; ``written``: the text itself begins with the policy's."""
    stop: tuple[str, ...] = PUBLISHED_STOP
    """Strings that end a completion, beside the EOS token."""

    def fill(self, question: str) -> str:
        """The prompt's text. Not ``str.format``: questions and templates hold braces."""
        return self.text.replace(SLOT, question, 1)

    def described(self) -> dict[str, Any]:
        """The template's fields as plain JSON, for the identity of runs."""
        return asdict(self) | {"stop": list(self.stop)}

    def before_stop(self, completion: str) -> str:
        """The completion's text before its first stop string."""
        return min((completion.partition(string)[0] for string in self.stop), key=len, default=completion)


_MATH_TASK = "[MATH_TASK] Problem:\n{question}\n\nSolution:"
_R1_BEGIN = "<｜begin▁of▁sentence｜>"
_R1_END = (
    ". I hope it is correct' (without quotes) where ANSWER is just the final number or expression that solves the "
    "problem. Think step by step before answering.\n\n{question}<｜Assistant｜>"
)

TEMPLATES = {
    template.name: template
    for template in (
        Template("arithmetic", "{question}=?\n", "hashes", stop=()),
        Template("math_task", _MATH_TASK, "hashes"),
        Template("math_task_boxed", _MATH_TASK, "boxed"),
        Template("plain", "Question: {question}\nAnswer:", "hashes", stop=("\nQuestion:",)),
        Template(
            "r1_boxed",
            f"{_R1_BEGIN}<｜User｜>Solve the following math problem efficiently and clearly.  The last line of your "
            "response should be of the following format: 'Therefore, the final answer is: $\\boxed{ANSWER}$"
            f"{_R1_END}<think>\n",
            "boxed",
            "written",
        ),
        Template(
            "r1_hashes",
            f"{_R1_BEGIN}<｜User｜>Solve the following math problem efficiently and clearly. The last line of your "
            "response should be of the following format: 'Therefore, the final answer is: #### ANSWER"
            f"{_R1_END}",
            "hashes",
            "written",
        ),
        Template(
            "r1_point24",
            f"{_R1_BEGIN}You are an intelligent system that calculates 24 point games, put your final calculation "
            "expression into \\boxed{}, for example \\boxed{1 * 2 * 3 * 4}."
            "<｜User｜>{question}<｜Assistant｜><think>\n",
            "boxed",
            "written",
        ),
    )
}


def named_template(name: str) -> Template:
    """The template of that name. Raises ConfigError, naming all templates, for an unknown one."""
    if name not in TEMPLATES:
        raise ConfigError(f"data.template: no template {name!r}; there are: {', '.join(sorted(TEMPLATES))}")
    return TEMPLATES[name]


def own_template(params: JsonlParams) -> Template:
    """The template that ``data.jsonl`` describes: a named one or a text, with its own answer form, BOS and stop
    strings where given. Raises ConfigError for an unknown name, and for a text that does not hold SLOT once."""
    if SLOT in params.template:
        if params.template.count(SLOT) > 1:
            raise ConfigError(f"data.jsonl.template: must hold {SLOT} once")
        template = Template("own", params.template, "hashes", stop=())
    elif params.template in TEMPLATES:
        template = TEMPLATES[params.template]
    else:
        raise ConfigError(
            f"data.jsonl.template {params.template!r} neither holds {SLOT} nor names a template; "
            f"there are: {', '.join(sorted(TEMPLATES))}"
        )
    return replace(
        template,
        answer=params.answer_form or template.answer,
        bos=params.bos or template.bos,
        stop=template.stop if params.stop is None else params.stop,
    )


def encode_prompt(template: Template, tokenizer: Any, question: str) -> list[int]:
    """Token ids of one prompt. Raises DataError where its BOS tokens are not as the template says."""
    return encode_prompts(template, tokenizer, [question])[0]


def encode_prompts(template: Template, tokenizer: Any, questions: Sequence[str]) -> list[list[int]]:
    """Encode many prompts as :func:`encode_prompt` does one, with one call of the tokenizer."""
    if not questions:
        return []
    encoded = tokenizer([template.fill(question) for question in questions], add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    for question, ids in zip(questions, encoded, strict=True):
        if template.bos == "written" and ids[:1] != [bos]:
            begin = template.text[: template.text.find(">") + 1] or repr(template.text[:20])
            raise DataError(
                f"template {template.name} begins with {begin}, which is not this policy's BOS token "
                f"({tokenizer.bos_token!r}); choose another data.template or another policy"
            )
        if template.bos == "none" and ids[:1] == [bos] and not template.text.startswith(SLOT):
            raise DataError(
                f"template {template.name} begins with the policy's BOS token {tokenizer.bos_token!r} and is to have "
                "none; remove it, or say so with data.jsonl.bos: written"
            )
        if bos is not None and ids.count(bos) != (template.bos == "written"):
            raise DataError(
                f"template {template.name}, bos {template.bos}: a prompt holds the BOS token {tokenizer.bos_token!r} "
                f"{ids.count(bos)} times; remove it from the question or the template: {question[:60]!r}"
            )
    return encoded
