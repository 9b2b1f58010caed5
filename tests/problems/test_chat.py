"""Chat templates of a policy's own tokenizer: one BOS token, switches, and no question whose text is changed."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from spo_core.config import ChatParams, DataParams, load_params
from spo_core.errors import ConfigError, DataError
from spo_core.learn.supervised import encode_demonstrations
from spo_core.paths import Paths
from spo_core.problems import problem_set
from spo_core.problems.base import Question
from spo_core.problems.templates import chat_template, encode_prompt, encode_prompts
from spo_core.train.example import print_example
from tests.conftest import ROOT
from tests.problems.test_templates import byte_tokenizer

LOOP = "{%- for m in messages %}"
QWEN3 = (
    "{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}"
    "{%- endif %}"
    + LOOP
    + "{%- if m.role == 'user' %}{{- '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
QWEN2 = (  # with a system message of its own
    "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{%- endif %}"
    + LOOP
    + "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}{{- '<|im_start|>assistant\n' }}"
)
LLAMA3 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '<|eot_id|>' }}"
    + LOOP
    + "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    + LOOP
    + "{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PLAIN = LOOP + "{{- m.role + ': ' + m.content + '\n' }}{%- endfor %}{{- 'assistant:' }}"
DATED = "{{ strftime_now('%Y-%m-%d') }} " + PLAIN
CASES = {  # chat template, BOS token, whether the tokenizer adds it to texts
    "qwen3": (QWEN3, None, False),
    "qwen2": (QWEN2, None, False),
    "llama3": (LLAMA3, "<s>", True),
    "gemma": (GEMMA, "<bos>", True),
    "plain": (PLAIN, "<s>", False),
    "plain, adds": (PLAIN, "<s>", True),
    "dated": (DATED, None, False),
}


def tokenizer_of(case: str):
    template, bos, adds = CASES[case]
    tokenizer = byte_tokenizer(bos, adds)
    tokenizer.chat_template = template
    return tokenizer


def expected(tokenizer, chat: ChatParams, question: str, **switches) -> str:
    messages = [{"role": "system", "content": chat.system}] if chat.system is not None else []
    messages.append({"role": "user", "content": chat.user.replace("{question}", question, 1)})
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **switches)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=30)
@given(
    st.sampled_from(sorted(CASES.keys() - {"dated"})),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(lambda q: q.strip() and "<s>" not in q),
    st.sampled_from([None, "Be brief.", "{{ messages }}"]),
    st.sampled_from(["{question}", "{question}\nAnswer in \\boxed{}.", "Solve: {question}"]),
)
def test_a_prompt_is_what_the_tokenizer_makes_of_the_messages_with_one_bos(case, question, system, user):
    """The ids of transformers' own rendering, and one BOS token where the policy's texts begin with one."""
    if case == "gemma":
        system = None
    tokenizer, chat = tokenizer_of(case), ChatParams(system=system, user=user)
    day = {"date_string": "26 Jul 2024"} if case == "llama3" else {}
    text = expected(tokenizer, chat, question, **day)
    ids = encode_prompt(chat_template(chat), tokenizer, question)
    bos = tokenizer.bos_token_id
    assert ids.count(bos) == (case in ("llama3", "gemma", "plain, adds")) if bos is not None else True
    if bos in ids:
        assert ids[0] == bos
    beginning = tokenizer.bos_token if case == "plain, adds" else ""
    assert ids == tokenizer(beginning + text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(("thinking", "ends"), [(None, ""), (True, ""), (False, "<think>\n\n</think>\n\n")])
def test_thinking_switches_as_qwen3_has_them(thinking, ends):
    tokenizer, chat = tokenizer_of("qwen3"), ChatParams(thinking=thinking, system="Be brief.")
    text = tokenizer.decode(encode_prompt(chat_template(chat), tokenizer, "1+1?"))
    begins = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    assert text == begins + ends


def test_the_day_of_a_prompt_is_always_the_same():
    text = tokenizer_of("dated").decode(encode_prompt(chat_template(ChatParams()), tokenizer_of("dated"), "1+1?"))
    assert text == "2024-07-26user: 1+1?\nassistant:"


@pytest.mark.parametrize(
    ("case", "template", "chat", "says"),
    [
        ("plain", None, {}, "has no chat template"),
        ("qwen2", QWEN2, {"thinking": True}, r"data\.chat\.thinking: .* no such switch"),
        ("gemma", GEMMA, {"system": "x"}, "refuses these messages: System role not supported"),
        ("plain", LOOP + "{{ m.content | upper }}{% endfor %}", {}, "changes the text of questions"),
        ("plain", LOOP + "{{ m.content.split('</think>')[-1] }}{% endfor %}", {}, "changes the text of questions"),
        ("plain", LOOP + "{{ m.content + m.content }}{% endfor %}", {}, "changes the text of questions"),
        ("plain", "{{ nonesuch.x }}", {}, "refuses these messages"),
        ("plain", "{{ ''.__class__.__mro__ }}", {}, "refuses these messages"),
    ],
)
def test_chat_templates_that_cannot_be_used_are_refused(case, template, chat, says):
    tokenizer = tokenizer_of(case)
    tokenizer.chat_template = template
    with pytest.raises(DataError, match=says):
        encode_prompts(chat_template(ChatParams(**chat)), tokenizer, ["1+1?"])


@pytest.mark.parametrize("wrong", [{"user": "no slot"}, {"user": "{question}{question}"}, {"system": "a {question}"}])
def test_messages_hold_the_question_once(wrong):
    with pytest.raises(ValidationError, match=r"must hold \{question\} once"):
        ChatParams(**wrong)


def test_problem_sets_take_it_in_place_of_their_template():
    chat = ChatParams(user="{question} ?", answer_form="hashes", stop=("\nuser:",))
    problem = problem_set(DataParams(problem_set="gsm8k", chat=chat))
    assert (problem.template.answer, problem.template.stop) == ("hashes", ("\nuser:",))
    assert problem.template.described()["chat"]["user"] == "{question} ?"
    assert problem.template.described() != problem_set(DataParams(problem_set="gsm8k")).template.described()
    with pytest.raises(ValueError, match="no text without a tokenizer"):
        problem.prompt("x")
    with pytest.raises(ConfigError, match=r"data\.chat: arithmetic has a template of its own"):
        problem_set(DataParams(chat=chat))
    with pytest.raises(ValidationError, match=r"data\.chat takes its place"):
        DataParams(problem_set="gsm8k", template="plain", chat=chat)
    tokenizer = tokenizer_of("plain")
    tokenizer.eos_token = tokenizer.pad_token = "!"
    row = Question("q", "1+1", "2", "It is 1+1.\n#### 2")
    ids, labels = encode_demonstrations([row], problem, tokenizer, None)
    assert tokenizer.decode(ids[0]) == "user: 1+1 ?\nassistant:It is 1+1.\n#### 2!"
    assert tokenizer.decode(ids[0][labels[0] >= 0]) == "It is 1+1.\n#### 2!"


def test_a_dry_run_shows_the_ids_and_the_text(tmp_path):
    tokenizer_of("qwen3").save_pretrained(tmp_path / "policy")
    (tmp_path / "policy" / "config.json").write_text('{"model_type": "qwen3"}')
    overrides = (f"policy.init={{type: pretrained, path: {tmp_path / 'policy'}}}", "data.problem_set=gsm8k")
    params = load_params(ROOT, None, (*overrides, "data.chat={system: Be brief., thinking: false}"))
    console = Console(record=True, width=200, highlight=False, markup=False)
    print_example(params, Paths(tmp_path), console)
    said = console.export_text()
    tokenizer = tokenizer_of("qwen3")
    ids = encode_prompt(problem_set(params.data).template, tokenizer, "What is 1 + 1?")
    assert f"of question made up, {len(ids)} tokens" in said
    assert " ".join(f"{i}:{tokenizer.decode([i])!r}" for i in ids) in said
    assert f"text: {tokenizer.decode(ids)!r}" in said and "</think>" in said
    console = Console(record=True, width=200)
    print_example(load_params(ROOT), Paths(tmp_path), console)
    assert "of question arithmetic-train-" in console.export_text()
    print_example(load_params(ROOT, "qwen1.5b-grpo"), Paths(tmp_path), console)
    assert "neither checkpoints/warmup nor the folder of policy.init is here" in console.export_text()
