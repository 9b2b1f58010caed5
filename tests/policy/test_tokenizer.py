"""The policy's tokenizer is that of its tokenizer.json, whatever class transformers takes it for."""

from __future__ import annotations

import json
import logging
from functools import cache
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from spo_core.config import JsonlParams
from spo_core.errors import DataError
from spo_core.policy import tokenizer as module
from spo_core.policy.checkpoint import load_policy, save_policy
from spo_core.policy.tokenizer import TEXTS, difference, load_tokenizer
from spo_core.problems.templates import encode_prompt, own_template
from tests.conftest import ROOT

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
CHAT = "{{ bos_token }}[Q] {{ messages[0]['content'] }} [A]"
QUESTION = "  Let $x_1 =  \\frac{1}{2}$.\n\nWhat is 12 + 30?\tЧто это? 数 🙂 "
ByteLevel, Metaspace = pre_tokenizers.ByteLevel, pre_tokenizers.Metaspace


@cache
def corpus() -> list[str]:
    return [*TEXTS, *(path.read_text() for path in sorted((ROOT / "spo_core" / "verify").glob("*.py")))]


def trained(model, trainer, **parts) -> Tokenizer:
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.train_from_iterator(corpus(), trainer(vocab_size=600, special_tokens=SPECIAL, show_progress=False))
    return tokenizer


def byte_level(pre_tokenizer) -> Tokenizer:
    def trainer(**more):
        return trainers.BpeTrainer(initial_alphabet=ByteLevel.alphabet(), **more)

    return trained(models.BPE(), trainer, pre_tokenizer=pre_tokenizer, decoder=decoders.ByteLevel())


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    own = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([own, ByteLevel(add_prefix_space=False, use_regex=False)])


def sentencepiece_bpe(prepend: str) -> Tokenizer:
    """As converted from sentencepiece: bytes for what is unknown; ``legacy`` prepends in the normalizer."""
    marks = [f"<0x{i:02X}>" for i in range(256)]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *marks])}
    letters = sorted({c for text in TEXTS[:8] for c in text.replace(" ", "▁") if c.isprintable()})
    vocabulary |= {c: len(vocabulary) + i for i, c in enumerate(letters)}
    merges = [("▁", "a"), ("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "▁"), ("▁▁", "▁▁")]
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens(SPECIAL)
    strip = [] if prepend == "never" else [decoders.Strip(content=" ", left=1)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    if prepend == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = Metaspace(prepend_scheme=prepend, split=False)
    return tokenizer


def unigram_trainer(**more):
    return trainers.UnigramTrainer(unk_token="<unk>", **more)


FILES = {
    "bytes as GPT-2": lambda: byte_level(ByteLevel(add_prefix_space=False)),
    "bytes with a space first": lambda: byte_level(ByteLevel(add_prefix_space=True)),
    "bytes as Llama-3": lambda: byte_level(split(r"\p{N}{1,3}|\s?\p{L}+|[^\s\p{L}\p{N}]+|\s+")),
    "bytes by line and digit": lambda: byte_level(split(r"[\r\n]|\p{N}")),
    "sentencepiece, legacy": lambda: sentencepiece_bpe("legacy"),
    "sentencepiece, first": lambda: sentencepiece_bpe("first"),
    "sentencepiece, never": lambda: sentencepiece_bpe("never"),
    "unigram": lambda: trained(
        models.Unigram(),
        unigram_trainer,
        normalizer=normalizers.NFKC(),
        pre_tokenizer=Metaspace(),
        decoder=decoders.Metaspace(),
    ),
    "words": lambda: trained(
        models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer, pre_tokenizer=pre_tokenizers.WhitespaceSplit()
    ),
    "word pieces": lambda: trained(
        models.WordPiece(unk_token="<unk>"),
        trainers.WordPieceTrainer,
        normalizer=normalizers.Lowercase(),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.WordPiece(),
    ),
}
TYPES = ("llama", "qwen2", "mistral", "gpt2", "gemma", "phi3", "cohere", "deepseek_v2", "gpt_neox", "olmo2")
CLASSES = (
    None,
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "PreTrainedTokenizerFast",
    "GemmaTokenizerFast",
    "Qwen2Tokenizer",
    "GPT2Tokenizer",
    "T5Tokenizer",
)
FLAGGED = {str(i): {"content": t, "special": True, "rstrip": i == 1, "lstrip": False} for i, t in enumerate(SPECIAL)}
FLAGS = (
    {},
    {"add_bos_token": True, "legacy": True, "clean_up_tokenization_spaces": True},
    {"add_bos_token": False, "legacy": False, "add_prefix_space": True},
    {"add_bos_token": True, "add_eos_token": True, "add_prefix_space": False, "added_tokens_decoder": FLAGGED},
)


@cache
def file_of(name: str) -> str:
    return FILES[name]().to_str()


def write(folder: Path, tokenizer: Tokenizer | str, model_type: str, **config) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = tokenizer if isinstance(tokenizer, str) else tokenizer.to_str()
    (folder / "tokenizer.json").write_text(text)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "tokenizer_config.json").write_text(json.dumps(NAMED | {"chat_template": CHAT} | config))
    return folder


def same(tokenizer, folder: Path) -> None:
    """Ids and texts are the file's own, over a text that ``load_tokenizer`` does not look at too."""
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert difference(tokenizer, own) is None
    for text in (QUESTION, f"<s>{QUESTION}", f"{QUESTION}</s><pad> {QUESTION}"):
        ids = own.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.decode(ids) == own.decode(ids, skip_special_tokens=False)
        assert tokenizer.decode(ids, skip_special_tokens=True) == own.decode(ids, skip_special_tokens=True)
    for name, token in NAMED.items():
        assert getattr(tokenizer, name) == token
        assert getattr(tokenizer, f"{name}_id") == SPECIAL.index(token)
    assert tokenizer.chat_template == CHAT


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("name", FILES)
def test_ids_and_texts_are_the_files_own(name, model_type, tmp_path):
    """For classes and flags in turn, so that every pair of them meets over all files and types."""
    turn = list(FILES).index(name) + TYPES.index(model_type)
    for number, class_name in enumerate(CLASSES):
        flags = FLAGS[(turn + number) % len(FLAGS)] | ({} if class_name is None else {"tokenizer_class": class_name})
        if number % 2 == turn % 2:  # half of the product of four: each pair is met
            folder = write(tmp_path / str(number), file_of(name), model_type, **flags)
            same(load_tokenizer(folder), folder)


def test_what_transformers_makes_of_a_byte_level_file_under_llama(tmp_path, caplog):
    """It loses spaces and newlines; where that is mended upstream, the check may go."""
    folder = write(tmp_path, file_of("bytes as Llama-3"), "llama", tokenizer_class="LlamaTokenizerFast")
    made = AutoTokenizer.from_pretrained(folder)
    assert made.decode(made.encode("a b\nc", add_special_tokens=False)) != "a b\nc"
    module._say.cache_clear()
    with caplog.at_level(logging.WARNING, "spo_core.policy.tokenizer"):
        for _ in range(2):
            own = load_tokenizer(folder)
            assert own.decode(own.encode("a b\nc", add_special_tokens=False)) == "a b\nc"
    (said,) = caplog.messages
    assert str(folder) in said and "the file's is used" in said


@pytest.mark.parametrize("name", FILES)
def test_a_saved_policy_has_the_same_tokenizer(name, tmp_path):
    """Saved twice, and for any other loader: model type llama takes the saved file as it is."""
    folder = write(tmp_path / "a", file_of(name), "llama", tokenizer_class="LlamaTokenizerFast")
    config = LlamaConfig(
        vocab_size=1000, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for target in ("b", "c"):
        model, tokenizer = load_policy(folder)
        save_policy(model, tokenizer, tmp_path / target)
        same(load_tokenizer(tmp_path / target), folder)
        same(AutoTokenizer.from_pretrained(tmp_path / target), folder)
        folder = tmp_path / target
    assert torch.equal(load_policy(folder)[0].lm_head.weight, model.lm_head.weight)


def test_a_truncation_in_the_file_is_not_applied(tmp_path):
    tokenizer = Tokenizer.from_str(file_of("bytes as GPT-2"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    loaded = load_tokenizer(write(tmp_path, tokenizer, "gpt2"))
    assert loaded.decode(loaded(QUESTION, add_special_tokens=False)["input_ids"]) == QUESTION


def with_bos_normalizer() -> Tokenizer:
    tokenizer = Tokenizer.from_str(file_of("words"))
    tokenizer.normalizer = normalizers.Prepend("<s> ")
    return tokenizer


def of_no_kind() -> str:
    saved = json.loads(file_of("bytes as GPT-2"))
    saved["model"] = {"type": "none such"}
    return json.dumps(saved)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (with_bos_normalizer, "its tokenizer adds '<s>' to every text by itself; take that out of the normalizer"),
        (of_no_kind, "tokenizer.json: cannot be read as a tokenizer"),
        (lambda: "{", "tokenizer.json: cannot be read as a tokenizer"),
    ],
)
def test_refused_in_one_line(make, why, tmp_path):
    with pytest.raises(DataError) as refusal:
        load_tokenizer(write(tmp_path, make(), "llama"))
    assert why in str(refusal.value) and str(tmp_path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_sentencepiece_model_alone_is_loaded_as_transformers_does(tmp_path, monkeypatch):
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "corpus.txt").write_text("\n".join(corpus()))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=800,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    loaded = load_tokenizer(tmp_path)
    assert loaded.decode(loaded.encode("one  two\n three", add_special_tokens=False)) == "one  two\n three"
    monkeypatch.setattr(type(loaded), "decode", lambda *_, **__: module.WORDS.replace(" ", ""))
    with pytest.raises(DataError, match=r"gives 'Thesumof.* back for 'The sum of .*; it needs a tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_refused_where_nothing_gives_the_files_ids(tmp_path, monkeypatch):
    """As a version of transformers might: every way to the file goes through the rebuilt class."""
    folder = write(tmp_path, file_of("bytes as Llama-3"), "llama", tokenizer_class="LlamaTokenizerFast")
    wrong = AutoTokenizer.from_pretrained(folder)
    monkeypatch.setattr(module.PreTrainedTokenizerFast, "from_pretrained", lambda *_, **__: wrong)
    with pytest.raises(DataError, match=r"tokenizer\.json and what tokenizer_config\.json makes of it differ: .* gets"):
        load_tokenizer(folder)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_prompt_from_a_chat_template_has_one_bos_token(adds_bos, tmp_path):
    """The template's text holds it, so the post-processor's, ``add_bos_token``'s and the user's are not added."""
    tokenizer = Tokenizer.from_str(file_of("bytes as GPT-2"))
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    loaded = load_tokenizer(write(tmp_path, tokenizer, "llama", add_bos_token=adds_bos))
    assert (loaded.encode("a")[0] == loaded.bos_token_id) == adds_bos
    message = [{"role": "user", "content": "{question}"}]
    text = loaded.apply_chat_template(message, tokenize=False)
    template = own_template(JsonlParams(test="t", template=text, bos="written"))
    ids = encode_prompt(template, loaded, "1 + 1")
    assert ids.count(loaded.bos_token_id) == 1 and loaded.decode(ids) == "<s>[Q] 1 + 1 [A]"
    with pytest.raises(DataError, match=r"is to have none; remove it, or say so with data\.jsonl\.bos: written"):
        encode_prompt(own_template(JsonlParams(test="t", template=text)), loaded, "1 + 1")
    with pytest.raises(DataError, match="holds the BOS token '<s>' 2 times; remove it from the question or the templ"):
        encode_prompt(own_template(JsonlParams(test="t", template="<s>" + text, bos="written")), loaded, "1 + 1")
