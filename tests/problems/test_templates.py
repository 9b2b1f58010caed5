"""Templates as published, and the BOS token before a prompt, which is there once or not at all."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from spo_core.config import DataParams, JsonlParams
from spo_core.errors import ConfigError, DataError
from spo_core.problems import problem_set
from spo_core.problems.templates import TEMPLATES, encode_prompt, encode_prompts, named_template, own_template

BAR, LOW = "\uff5c", "\u2581"  # as in the special tokens of DeepSeek's tokenizers
BEGIN = f"<{BAR}begin{LOW}of{LOW}sentence{BAR}>"
USER, ASSISTANT = f"<{BAR}User{BAR}>", f"<{BAR}Assistant{BAR}>"
PUBLISHED = {
    "math_task": "[MATH_TASK] Problem:\nQ\n\nSolution:",
    "math_task_boxed": "[MATH_TASK] Problem:\nQ\n\nSolution:",
    "r1_boxed": BEGIN + USER + "Solve the following math problem efficiently and clearly.\x20\x20The last line of your "
    "response should be of the following format: 'Therefore, the final answer is: \x24\\boxed{ANSWER}\x24. I hope it "
    "is correct' (without quotes) where ANSWER is just the final number or expression that solves the problem. Think "
    "step by step before answering.\n\nQ" + ASSISTANT + "<think>\n",
    "r1_hashes": BEGIN + USER + "Solve the following math problem efficiently and clearly.\x20The last line of your "
    "response should be of the following format: 'Therefore, the final answer is: #### ANSWER. I hope it is correct' "
    "(without quotes) where ANSWER is just the final number or expression that solves the problem. Think step by step "
    "before answering.\n\nQ" + ASSISTANT,
    "r1_point24": BEGIN + "You are an intelligent system that calculates 24 point games, put your final calculation "
    "expression into \\boxed{}, for example \\boxed{1 * 2 * 3 * 4}." + USER + "Q" + ASSISTANT + "<think>\n",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_templates_are_as_published(name):
    assert TEMPLATES[name].fill("Q") == PUBLISHED[name]
    assert TEMPLATES[name].stop == ("\n\n\nProblem:",)
    assert TEMPLATES[name].bos == ("none" if name.startswith("math_task") else "written")
    assert TEMPLATES[name].answer == ("hashes" if name in ("math_task", "r1_hashes") else "boxed")


def test_every_template_holds_one_question_which_may_hold_anything():
    for template in TEMPLATES.values():
        assert template.text.count("{question}") == 1
        assert "{x} {question} %s \\boxed{2}" in template.fill("{x} {question} %s \\boxed{2}")


def byte_tokenizer(bos: str | None, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos is not None:
        tokenizer.add_special_tokens([AddedToken(bos, special=True)])
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_written_bos_token_stands_before_the_prompt_once(adds_bos):
    tokenizer = byte_tokenizer(BEGIN, adds_bos)
    ids = encode_prompt(TEMPLATES["r1_boxed"], tokenizer, "1+1?")
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids) == TEMPLATES["r1_boxed"].fill("1+1?")


@pytest.mark.parametrize("bos", [None, "<s>", BEGIN])
def test_without_a_written_bos_token_none_is_added(bos):
    tokenizer = byte_tokenizer(bos, adds_bos=bos is not None)
    if bos is not None:
        assert tokenizer.encode("a")[0] == tokenizer.bos_token_id  # it would add one by itself
    ids = encode_prompts(TEMPLATES["math_task"], tokenizer, ["1+1?", "é"])
    assert [tokenizer.decode(i) for i in ids] == [PUBLISHED["math_task"].replace("Q", q) for q in ("1+1?", "é")]
    assert encode_prompts(TEMPLATES["math_task"], tokenizer, []) == []


@pytest.mark.parametrize("bos", [None, "<s>"])
def test_a_policy_with_another_bos_token_is_refused(bos):
    with pytest.raises(DataError, match=f"r1_boxed begins with {BEGIN}, which is not this policy's BOS token") as error:
        encode_prompt(TEMPLATES["r1_boxed"], byte_tokenizer(bos), "1+1?")
    assert "choose another data.template or another policy" in str(error.value)


def test_a_bos_token_within_a_question_is_refused_or_text():
    with pytest.raises(
        DataError, match=f"template r1_boxed has special tokens of the policy, so '{BEGIN}' would be one"
    ):
        encode_prompts(TEMPLATES["r1_boxed"], byte_tokenizer(BEGIN), ["fine", f"a {BEGIN} b"])
    tokenizer = byte_tokenizer(BEGIN)
    assert tokenizer.bos_token_id not in encode_prompts(TEMPLATES["math_task"], tokenizer, [f"a {BEGIN} b"])[0]


def test_an_own_template_that_writes_a_bos_token_has_to_say_so():
    tokenizer = byte_tokenizer("<s>")
    with pytest.raises(DataError, match=r"begins with the policy's BOS token '<s>'.* data\.jsonl\.bos: written"):
        encode_prompt(own_template(own(template="<s>{question}=")), tokenizer, "1")
    ids = encode_prompt(own_template(own(template="<s>{question}=", bos="written")), tokenizer, "1")
    assert ids == [tokenizer.bos_token_id, *tokenizer.encode("1=")]


def test_unknown_templates_are_refused_with_the_known_ones():
    with pytest.raises(
        ConfigError, match=r"data\.template: no template 'r2'; there are: arithmetic, math_task, math_task_boxed, plain"
    ):
        named_template("r2")
    with pytest.raises(ConfigError, match="no template 'r2'"):
        problem_set(DataParams(problem_set="gsm8k", template="r2"))


def test_a_problem_set_may_be_asked_with_another_template():
    gsm8k = problem_set(DataParams(problem_set="gsm8k", template="r1_boxed"))
    assert gsm8k.prompt("Q") == PUBLISHED["r1_boxed"]
    assert gsm8k.extract("#### 3, or rather \\boxed{4}") == "4"
    assert problem_set(DataParams(problem_set="gsm8k")).extract("\\boxed{4}\n#### 3") == "3"


def own(**params) -> JsonlParams:
    return JsonlParams(test="test.jsonl", **params)


def test_own_templates_are_a_name_or_a_text():
    assert own_template(own()) == TEMPLATES["plain"]
    assert own_template(own(template="r1_boxed", stop=())).stop == ()
    text = own_template(own(template="<s>{question}=", bos="written", answer_form="boxed", stop=("\n",)))
    assert (text.fill("1"), text.bos, text.answer, text.stop) == ("<s>1=", "written", "boxed", ("\n",))
    assert own_template(own(template="{question}=")).stop == ()


@pytest.mark.parametrize(
    ("template", "message"),
    [("r2", "neither holds {question} nor names a template"), ("{question} {question}", "must hold {question} once")],
)
def test_an_own_template_without_room_for_the_question_is_refused(template, message):
    with pytest.raises(ConfigError, match=message):
        own_template(own(template=template))
