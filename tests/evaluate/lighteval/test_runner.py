"""Evaluation of a small random policy in a cell, through the real lighteval where its environment exists."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from spo_core.config import DataParams, EvaluateParams, ScratchPolicy, VerifyParams
from spo_core.errors import ConfigError, DataError
from spo_core.evaluate.cross_check import summarize
from spo_core.evaluate.lighteval.details import by_question, read_details
from spo_core.evaluate.lighteval.exchange import Request, Servers
from spo_core.evaluate.lighteval.process import LOG
from spo_core.evaluate.lighteval.runner import DETAILS, check_positions, measure_cell
from spo_core.evaluate.result import CellScore, EvaluationError
from spo_core.evaluate.suite import Cell
from spo_core.policy.checkpoint import make_policy, make_tokenizer, save_policy
from spo_core.problems import problem_set
from spo_core.verify import Outcome
from tests.conftest import SHORT_DATA
from tests.flows.conftest import EVALUATION_PYTHON, needs_evaluation
from tests.policy.test_tokenizer import file_of, write

SHORT, LONG = Cell("own", "short", 6), Cell("own", "long", 24)
PARAMS = EvaluateParams(suite="small", contexts={"short": 6, "long": 24}, samples=5, seed=3, batch_size=16)
SIZES = {"hidden_size": 64, "layers": 1, "heads": 2, "intermediate_size": 16, "max_positions": 64}  # heads vLLM knows
QUESTIONS = problem_set(SHORT_DATA.model_copy(update={"train": 1, "validation": 1, "test": 10})).test()[:7]
OWN = DataParams.model_validate(  # the prompts of arithmetic, with a string that ends completions
    {
        "problem_set": "own",
        "jsonl": {"test": "unused", "template": "{question}=?\n", "answer_form": "hashes", "stop": ("7",)},
    }
)


def save_random_policy(folder: Path) -> Path:
    """Has a second stop token, and defaults that must not reach the evaluation: top_k, a chat template, a first token
    that its tokenizer adds."""
    tokenizer = make_tokenizer("characters", problem_set(SHORT_DATA))
    model = make_policy(ScratchPolicy(type="scratch", tokenizer="characters", **SIZES), tokenizer, seed=0)
    model.generation_config.top_k = 1
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("+")]
    tokenizer.chat_template = "{{ messages[0]['content'] }}?"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    assert tokenizer.encode("1")[0] == tokenizer.bos_token_id
    save_policy(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_random_policy(tmp_path_factory.mktemp("policies") / "random")


def measure(
    checkpoint: Path,
    cell: Cell,
    work_dir: Path,
    python: Path = EVALUATION_PYTHON,
    params: EvaluateParams = PARAMS,
    progress=None,
) -> CellScore:
    work_dir.mkdir(exist_ok=True)
    return measure_cell(
        checkpoint,
        cell,
        QUESTIONS,
        problem_set(OWN),
        params,
        VerifyParams(),
        model="random",
        model_digest="0" * 64,
        threads=1,
        python=python,
        work_dir=work_dir,
        progress=progress,
    )


def test_missing_environment(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="make install"):
        measure(checkpoint, LONG, tmp_path, python=tmp_path / "bin" / "python")


def test_missing_checkpoint(tmp_path):
    with pytest.raises(DataError, match="no checkpoint"):
        measure(tmp_path, LONG, tmp_path, script(tmp_path, "exit 0"))


def test_a_failing_child_is_told_in_one_line(checkpoint, tmp_path):
    with pytest.raises(EvaluationError) as error:
        measure(checkpoint, LONG, tmp_path, script(tmp_path, "echo 'a.ValueError: no luck' >&2; exit 1"))
    assert str(error.value) == f"lighteval failed: a.ValueError: no luck (see {tmp_path / LOG})"
    assert not (tmp_path / "scratch").exists() and not (tmp_path / DETAILS).exists()


def test_a_cell_must_fit_the_positions(checkpoint, tmp_path):
    for positions in (34, None):
        check_positions(LONG, 10, positions)
    with pytest.raises(ConfigError, match=r"evaluate\.contexts\.long"):
        check_positions(LONG, 10, 33)


@pytest.mark.slow
@needs_evaluation
def test_a_policy_is_refused_before_it_is_sampled(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"evaluate\.contexts\.long: 60 tokens .* 64 positions"):
        measure(checkpoint, replace(LONG, context_length=60), tmp_path / "long")
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text()) | {"model_type": "unheard-of"}
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"broken/config\.json: .*unheard-of"):
        measure(broken, LONG, tmp_path / "unknown")
    for folder in ("long", "unknown"):
        assert [path.name for path in (tmp_path / folder).iterdir()] == [LOG]


def test_a_request_reads_as_it_was_written(tmp_path):
    servers = Servers((80, 81), 4, 60.0, (2, 5), 0.6, 0.95, 40)
    plain = Request(24, 34, 5, 1.0, 1.0, 3, 16, ("7", "\n\n"), 1)
    for number, request in enumerate((plain, replace(plain, servers=servers))):
        folder = tmp_path / str(number)
        folder.mkdir()
        request.write(folder, {"q0": "1+2=?\n"})
        assert Request.read(folder) == request


def script(folder: Path, text: str) -> Path:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def measured(checkpoint, tmp_path_factory) -> tuple[dict[str, CellScore], dict[str, list], Path, list]:
    """Scores and samples of both cells, the folder, and the progress that the longer one told."""
    folder, progress = tmp_path_factory.mktemp("measured"), []
    scores = {
        "short": measure(checkpoint, SHORT, folder / "short"),
        "long": measure(checkpoint, LONG, folder / "long", progress=lambda *counts: progress.append(counts)),
    }
    return scores, {name: read_details(folder / name / DETAILS) for name in scores}, folder, progress


@pytest.mark.slow
@needs_evaluation
def test_end_to_end(checkpoint, request):
    """Counts, limits, stops, tracing; that the prompts are those of training and lighteval's figure follows from the
    completions is checked by every evaluation."""
    files = sorted(checkpoint.rglob("*"))
    scores, samples, folder, progress = request.getfixturevalue("measured")
    assert sorted(checkpoint.rglob("*")) == files, "lighteval wrote into the checkpoint"
    assert sorted(path.name for path in (folder / "long").iterdir()) == [DETAILS, LOG]
    assert progress[-1] == (35, 35)
    short = {(s.question_id, s.sample): s.completion for s in samples["short"]}
    for name, score in scores.items():
        check_score(score, samples[name], SHORT if name == "short" else LONG)
        assert score.truncated < 1 and (score.truncated > 0 or name == "long")
    for sample in samples["long"]:
        assert sample.completion.startswith(short[sample.question_id, sample.sample])
    assert len({s.completion for s in samples["long"]}) > 20, "samples of a question are not distinct"
    a, b = scores["short"].protocol, scores["long"].protocol
    assert a == replace(b, context_length=a.context_length)


@pytest.mark.slow
@pytest.mark.exhaustive
@needs_evaluation
def test_a_second_evaluation_gives_the_same(checkpoint, measured, tmp_path):
    scores, samples, *_ = measured
    again = measure(checkpoint, LONG, tmp_path)
    assert replace(again, seconds=0.0) == replace(scores["long"], seconds=0.0)
    assert read_details(tmp_path / DETAILS) == samples["long"]


@pytest.mark.slow
@needs_evaluation
def test_a_tokenizer_that_transformers_takes_for_another_kind(tmp_path):
    """Of a checkpoint as it lies on a hub: byte-level under model type llama. That the prompts are those of training is
    checked by every evaluation; here lighteval's own loader would lose the line's end."""
    folder = write(tmp_path / "policy", file_of("bytes as Llama-3"), "llama", tokenizer_class="LlamaTokenizerFast")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=700, **sizes)).save_pretrained(folder)
    made = AutoTokenizer.from_pretrained(folder)
    assert "\n" not in made.decode(made.encode("1+2=?\n"))
    score = measure(folder, SHORT, tmp_path / "short")
    assert score.protocol.questions == 7 and score.generated_tokens > 7


def check_score(score: CellScore, samples: list, cell: Cell) -> None:
    """What must hold of every evaluation of QUESTIONS with OWN and PARAMS, whatever samples."""
    assert CellScore.from_json(score.to_json()) == score
    assert [(s.question_id, s.sample) for s in samples] == [(q.question_id, n) for q in QUESTIONS for n in range(5)]
    gold = {q.question_id: q.answer for q in QUESTIONS}
    for sample in samples:
        assert sample.gold == gold[sample.question_id]
        assert 1 <= sample.tokens <= cell.context_length
        assert sample.tokens == cell.context_length or sample.outcome is not Outcome.TRUNCATED
        assert "+" not in sample.completion[:-1], "the second stop token did not stop"
        assert "7" not in sample.completion[:-1], "the stop string did not stop"
    assert score.generated_tokens == sum(sample.tokens for sample in samples)
    assert score.truncated == pytest.approx(sum(s.outcome is Outcome.TRUNCATED for s in samples) / 35)
    assert score.accuracy == pytest.approx(sum(s.correct for s in samples) / 35)
    assert score.cross_check is not None and score.cross_check == summarize(by_question(samples))
    assert (score.cell, score.context, score.suite, score.seed) == (cell.name, cell.context, "small", 3)
    protocol = score.protocol
    assert (protocol.problem_set, protocol.context_length, protocol.questions) == ("own", cell.context_length, 7)
    assert {"lighteval", "torch", "transformers", "math-verify"} <= protocol.versions.keys()
    assert (score.model, score.model_digest) == ("random", "0" * 64)
