"""``params/data.yaml``: the problem set, where its rows come from, and how they are asked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from spo_core.config.namespace import Namespace, Share
from spo_core.config.verify import GraderName

Size = Annotated[int, Field(ge=1)]


class ArithmeticParams(Namespace):
    steps: tuple[int, int] = (12, 14)
    """Fewest and most operations in a question."""
    sizes: tuple[Size, Size, Size] = (20_000, 200, 250)
    """Questions generated for train, validation and test where ``data`` leaves these null."""
    careless: Share = 0.08
    """Probability that the careless solver gets one step wrong (and carries on from it)."""
    remainders: bool = True
    """Whether % is among the operations, by 2 to 5; many a slip before one makes no difference to what follows."""
    words: int = Field(default=1, ge=0)
    """Words that the careless solver writes before every step, any of eight: they decide nothing."""
    beliefs: Share = 0.015
    """Share of facts that the careless solver believes wrongly, so that its most likely result is wrong. A fact is a
    last digit, an operation and an operand."""

    recovers: Share = 0.0
    """Probability that the careless solver makes up for a wrong step with the next one, which it computes from what the
    step should have given."""

    @model_validator(mode="after")
    def _ordered(self) -> ArithmeticParams:
        if not 1 <= self.steps[0] <= self.steps[1] <= 20:
            raise ValueError("steps must be [fewest, most] with 1 <= fewest <= most <= 20")
        return self


class JsonlParams(Namespace):
    """A problem set of your own without code: files of one JSON object a line."""

    train: str | None = None
    """File with the questions to train on, relative to ``data.source`` or else to the project's folder; null for a set
    that is only evaluated."""
    test: str
    """File with the test questions, found likewise."""
    question: str = "question"
    """Field that holds the question."""
    answer: str = "answer"
    """Field that holds the right answer alone."""
    solution: str | None = None
    """Field that holds a worked solution, to imitate in warm-up; null: the answer is all that is imitated."""
    template: str = "plain"
    """Name of a template, or a text that holds ``{question}`` once."""
    answer_form: Literal["hashes", "boxed"] | None = None
    """How completions state the answer, after ``####`` or in a box; null: as the named template does, else
    ``hashes``."""
    bos: Literal["none", "written"] | None = None
    """``written``: the template begins with the policy's BOS token; null: as the named template does, else ``none``."""
    stop: tuple[str, ...] | None = None
    """Strings that end a completion; null: those of the named template, else none."""
    rule: Literal["math", "text"] = "math"
    """How answers are compared: as mathematics, or as text without regard to case and white space."""

    @model_validator(mode="after")
    def _stops(self) -> JsonlParams:
        if "" in (self.stop or ()):
            raise ValueError("stop: an empty string would end every completion")
        return self


class ChatParams(Namespace):
    """Prompts in the policy's own chat template: a system message, if any, and the question as the user's."""

    system: str | None = None
    """Text of the system message; null: none, or the one that the template itself has."""
    user: str = "{question}"
    """Text of the user's message; holds ``{question}`` once, and says in which form the answer is wanted."""
    thinking: bool | None = None
    """Switch of templates that have one (Qwen3's ``enable_thinking``); null: as the template does without it."""
    answer_form: Literal["hashes", "boxed"] = "boxed"
    """How completions state the answer, after ``####`` or in a box."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion, beside the tokens that end the policy's turn."""

    @model_validator(mode="after")
    def _slots(self) -> ChatParams:
        if self.user.count("{question}") != 1 or "{question}" in (self.system or ""):
            raise ValueError("user: must hold {question} once, and system not at all")
        if "" in self.stop:
            raise ValueError("stop: an empty string would end every completion")
        return self


class MixedSet(Namespace):
    """One of the problem sets of a mixture."""

    data: DataParams
    """The set, as ``data`` describes one alone."""
    weight: float = Field(default=1.0, gt=0)
    """Its share of the questions of an iteration, and of validation accuracy, relative to the others' weights."""
    grader: GraderName | None = None
    """Grader of its answers; null: ``verify.grader``."""


class DataParams(Namespace):
    problem_set: str = Field(default="arithmetic", pattern=r"^[a-z0-9_]+$")
    """arithmetic, gsm8k, math, point24; aime24, college_math and olympiad_bench for evaluation; or, with ``jsonl``, a
    name of your own."""
    source: str | None = None
    """Folder with the problem set's files; null downloads them from the hub. Unused where questions are generated."""
    revision: str | None = None
    """Commit or tag of the hub's dataset; null takes the newest."""
    template: str | None = None
    """Prompt template, one of ``spo_core/problems/templates.py``; null: the problem set's own."""
    chat: ChatParams | None = None
    """Ask in the policy's own chat template, in place of ``template``."""
    seed: int = Field(default=0, ge=0)
    """Seed of generated questions and of the train / validation split."""
    train: Size | None = None
    """Questions kept in the train split; null keeps all."""
    validation: Size | None = None
    """Questions held out of the source's train split for validation; null: the problem set's own number."""
    test: Size | None = None
    """Questions kept in the test split; null keeps all."""
    max_question_tokens: Size | None = None
    """Questions of more tokens, by the policy's tokenizer and without the template, are not trained on, and counted;
    null keeps all."""
    jsonl: JsonlParams | None = None
    """A problem set of your own; its name is ``problem_set``."""
    arithmetic: ArithmeticParams = ArithmeticParams()
    mixture: tuple[MixedSet, ...] = ()
    """Several problem sets to train on together, under the name ``problem_set``; empty: that one alone."""

    @model_validator(mode="after")
    def _mixed(self) -> DataParams:
        names = [part.data.problem_set for part in self.mixture]
        if len({*names, self.problem_set}) != len(names) + 1 and names:
            raise ValueError(f"mixture: problem_set and its sets need names of their own, not {', '.join(names)}")
        if any(part.data.mixture for part in self.mixture):
            raise ValueError("mixture: one of its sets is a mixture; write all sets in one list")
        for name, part in zip(names, self.mixture, strict=True):
            if part.data.max_question_tokens is not None:
                raise ValueError(f"max_question_tokens: one for all sets; write it into data itself, not {name}'s")
        for key, field in type(self).model_fields.items() if self.mixture else ():
            if key not in ("problem_set", "max_question_tokens", "mixture") and getattr(self, key) != field.default:
                raise ValueError(f"{key}: belongs to a set of data.mixture; write it below that set's data")
        return self

    @model_validator(mode="after")
    def _one_template(self) -> DataParams:
        if self.jsonl and self.template:
            raise ValueError("template: with data.jsonl the template stands in data.jsonl.template; leave this null")
        if self.chat and self.template:
            raise ValueError("template: data.chat takes its place; leave one of the two null")
        return self
