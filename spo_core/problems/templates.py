r"""Prompt templates, character by character as published, and how prompts are encoded.

A prompt is encoded with ``add_special_tokens=False``: nothing is added to it silently, in training, rollouts or
evaluation. Where the policy expects a BOS token the template's own text begins with it (``bos: written``). A completion
ends with the policy's own EOS token, which is sampled and trained, and never part of the text; or with a stop string.
Source of all but ``arithmetic`` and ``plain``: docs/reference.md 3.5; ``math_task_boxed`` is the Rho runs' template for
policies that box their answers, as those trained on MATH do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Literal

from jinja2 import TemplateError

from spo_core.config import ChatParams, JsonlParams
from spo_core.errors import ConfigError, DataError, first_line

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
    chat: ChatParams | None = None
    """Messages of the policy's own chat template, which ``resolved`` asks for the text."""
    strips: Literal["", "before", "behind", "around"] = ""
    """Where white space at a question is left out, as some chat templates do."""

    def fill(self, question: str) -> str:
        """The prompt's text. Not ``str.format``: questions and templates hold braces. Raises ValueError for a chat
        template that is not resolved."""
        if self.chat is not None:
            raise ValueError(f"template {self.name} has no text without a tokenizer")
        if self.strips in ("before", "around"):
            question = question.lstrip()
        if self.strips in ("behind", "around"):
            question = question.rstrip()
        return self.text.replace(SLOT, question, 1)

    def resolved(self, tokenizer: Any) -> Template:
        """The template with the text that the policy's tokenizer gives it. Raises DataError where it cannot."""
        return self if self.chat is None else chat_text(self, self.chat, tokenizer)

    def described(self) -> dict[str, Any]:
        """The template's fields as plain JSON, for the identity of runs."""
        fields = asdict(replace(self, chat=None)) | {"stop": list(self.stop)}
        del fields["chat"], fields["strips"]
        return fields if self.chat is None else fields | {"chat": self.chat.model_dump(mode="json")}

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


def chat_template(params: ChatParams) -> Template:
    """The template that ``data.chat`` describes; its text comes from the policy's tokenizer."""
    return Template("chat", params.user, params.answer_form, stop=params.stop, chat=params)


# what a chat template must leave as it is: a probe of white space comes first
PROBES = ("  a\n b \n", "x", "<think>a</think> b", "{{ x }} {% y %} {# z #}", "[INST] é 数 </s>", "a\n\n\nb", "system")
DAY = datetime(2024, 7, 26)  # of templates that write the date, so that prompts are the same tomorrow


def chat_text(template: Template, params: ChatParams, tokenizer: Any) -> Template:
    """The text that the tokenizer's chat template makes around a question, as a template of its own.

    One BOS token stands at its beginning where the chat template writes it, or where the tokenizer would add it to
    other texts. Raises DataError where there is no chat template, where it refuses the messages or changes the text of
    questions, and for a thinking switch that it does not have.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError("data.chat: this policy's tokenizer has no chat template; set data.chat to null")

    def render(question: str, thinking: bool | None) -> str:
        messages = [] if params.system is None else [{"role": "system", "content": params.system}]
        messages.append({"role": "user", "content": params.user.replace(SLOT, question, 1)})
        switch = {} if thinking is None else {"enable_thinking": thinking, "thinking": thinking}
        day = {"date_string": DAY.strftime("%d %b %Y"), "strftime_now": DAY.strftime}
        try:
            return str(
                tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **switch, **day)
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise DataError(
                f"data.chat: the policy's chat template refuses these messages: {first_line(error)}"
            ) from None

    if params.thinking is not None and render("x", True) == render("x", False):
        raise DataError("data.chat.thinking: the policy's chat template has no such switch; set it to null")
    text, bos, added = render(SLOT, params.thinking), tokenizer.bos_token, ""
    if bos is not None and not text.startswith(bos) and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]:
        added = bos
    begins: Bos = "written" if bos is not None and (added + text).startswith(bos) else "none"
    strips: Any
    for strips in ("", "before", "behind", "around"):
        found = replace(template, text=added + text, bos=begins, chat=None, strips=strips)
        if text.count(SLOT) == 1 and all(found.fill(p) == added + render(p, params.thinking) for p in PROBES):
            return found
    raise DataError(
        "data.chat: the policy's chat template changes the text of questions; write a data.template instead"
    )


def special_as_text(template: Template, tokenizer: Any) -> bool:
    """Whether the policy's special tokens in a prompt are plain text: always, but where the template itself has some.

    A question that holds ``<eos>`` holds five characters, and no end.
    """
    return _special(tokenizer).search(template.text) is None


def _special(tokenizer: Any) -> re.Pattern[str]:
    """Matches the policy's special tokens; nothing where it has none but white space."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens = [token for token in {*tokenizer.all_special_tokens, *added} if token.strip()]
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")


def _refuse_special(template: Template, tokenizer: Any, questions: Sequence[str]) -> None:
    special = _special(tokenizer)
    for question in questions:
        if found := special.search(question):
            raise DataError(
                f"template {template.name} has special tokens of the policy, so {found.group()!r} would be one in a "
                f"question too; remove it there: {question[:60]!r}"
            )


def encode_prompt(template: Template, tokenizer: Any, question: str) -> list[int]:
    """Token ids of one prompt. Raises DataError where its BOS tokens are not as the template says."""
    return encode_prompts(template, tokenizer, [question])[0]


def encode_prompts(template: Template, tokenizer: Any, questions: Sequence[str]) -> list[list[int]]:
    """Encode many prompts as :func:`encode_prompt` does one, with one call of the tokenizer."""
    if not questions:
        return []
    template = template.resolved(tokenizer)
    as_text = special_as_text(template, tokenizer)
    if not as_text:
        _refuse_special(template, tokenizer, questions)
    prompts = [template.fill(question) for question in questions]
    encoded = tokenizer(prompts, add_special_tokens=False, split_special_tokens=as_text)["input_ids"]
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
