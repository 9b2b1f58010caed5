"""Evaluation of a small random policy, through the real lighteval where its environment exists."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing

from spo_core.config import DataParams, EvaluateParams, ScratchPolicy, VerifyParams
from spo_core.errors import ConfigError, DataError
from spo_core.evaluate.details import read_details
from spo_core.evaluate.exchange import Request
from spo_core.evaluate.lighteval_runner import DETAILS, LOG, evaluate_checkpoint
from spo_core.evaluate.result import Evaluation, EvaluationError
from spo_core.policy import make_policy, make_tokenizer, save_policy
from spo_core.problems import problem_set
from spo_core.problems.base import write_split
from spo_core.verify import Outcome

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("SPO_EVAL_PYTHON") or ROOT / ".venv-evaluate" / "bin" / "python")
PARAMS = EvaluateParams(contexts={"short": 6, "long": 24}, samples=5, questions=7, batch_size=16)
SIZES = {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 16, "max_positions": 64}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    splits = problem_set(DataParams(train=1, validation=1, test=10)).build()
    write_split(folder / "test.jsonl", splits["test"])
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Has a second stop token, and defaults that must not reach the evaluation: top_k, a chat template, a first token
    that its tokenizer adds."""
    folder = tmp_path_factory.mktemp("policies") / "random"
    tokenizer = make_tokenizer("characters", problem_set(DataParams()))
    model = make_policy(ScratchPolicy(type="scratch", tokenizer="characters", **SIZES), tokenizer, seed=0)
    model.generation_config.top_k = 1
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("+")]
    tokenizer.chat_template = "{{ messages[0]['content'] }}?"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    assert tokenizer.encode("1")[0] == tokenizer.bos_token_id
    save_policy(model, tokenizer, folder)
    return folder


OWN = DataParams.model_validate(  # the prompts of arithmetic, with a string that ends completions
    {
        "problem_set": "own",
        "jsonl": {"test": "unused", "template": "{question}=?\n", "answer_form": "hashes", "stop": ("7",)},
    }
)


def run(checkpoint: Path, data: Path, work_dir: Path, python: Path = PYTHON, progress=None) -> Evaluation:
    return evaluate_checkpoint(
        checkpoint,
        data,
        problem_set(OWN),
        PARAMS,
        VerifyParams(),
        seed=3,
        threads=1,
        python=python,
        work_dir=work_dir,
        progress=progress,
    )


def test_missing_environment(checkpoint, data, tmp_path):
    with pytest.raises(ConfigError, match="make install"):
        run(checkpoint, data, tmp_path, python=tmp_path / "bin" / "python")


def test_missing_checkpoint_and_data(checkpoint, data, tmp_path):
    python = script(tmp_path, "exit 0")
    with pytest.raises(DataError, match="no checkpoint"):
        run(tmp_path, data, tmp_path, python)
    with pytest.raises(DataError, match="no such dataset"):
        run(checkpoint, tmp_path, tmp_path, python)


def test_a_failing_child_is_told_in_one_line(checkpoint, data, tmp_path):
    with pytest.raises(EvaluationError) as error:
        run(checkpoint, data, tmp_path, script(tmp_path, "echo 'a.ValueError: no luck' >&2; exit 1"))
    assert str(error.value) == f"lighteval failed: a.ValueError: no luck (see {tmp_path / LOG})"
    assert not (tmp_path / "scratch").exists()


def test_contexts_must_fit_the_positions():
    request = Request(PARAMS, [], 0, 1, 1)
    assert request.max_length(10, 34) == request.max_length(10, None) == 34
    with pytest.raises(ConfigError, match=r"evaluate\.contexts\.long"):
        request.max_length(10, 33)


def script(folder: Path, text: str) -> Path:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.is_file(), reason=f"no lighteval environment at {PYTHON}; make install creates it")
def test_end_to_end(checkpoint, data, tmp_path):
    """Counts, limits, stops, tracing; that the prompts are those of training and lighteval's figure follows from the
    completions is checked by every evaluation."""
    files = sorted(checkpoint.rglob("*"))
    progress: list[tuple[int, int]] = []
    first = run(checkpoint, data, tmp_path / "a", progress=lambda *counts: progress.append(counts))
    samples = read_details(tmp_path / "a" / DETAILS)

    assert sorted(checkpoint.rglob("*")) == files, "lighteval wrote into the checkpoint"
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [DETAILS, LOG]
    assert progress[-1] == (70, 70)
    assert Evaluation.from_json(first.to_json()) == first
    assert len(samples) == 2 * 7 * 5
    assert first.generated_tokens == sum(sample.tokens for sample in samples)

    completions = {(s.context, s.question_id, s.sample): s for s in samples}
    assert len(completions) == len(samples)
    for (context, question, number), sample in completions.items():
        limit = PARAMS.contexts[context]
        assert 1 <= sample.tokens <= limit
        assert sample.tokens == limit or sample.outcome is not Outcome.TRUNCATED
        assert "+" not in sample.completion[:-1], "the second stop token did not stop"
        assert "7" not in sample.completion[:-1], "the stop string did not stop"
        if context == "long":
            assert sample.completion.startswith(completions["short", question, number].completion)
    assert len({s.completion for s in samples if s.context == "long"}) > 20, "samples of a question are not distinct"
    for name, cell in first.cells.items():
        rows = [s for s in samples if s.context == name]
        truncated = sum(s.outcome is Outcome.TRUNCATED for s in rows)
        assert (cell.questions, cell.context_length) == (7, PARAMS.contexts[name])
        assert cell.truncated == pytest.approx(truncated / len(rows))
        assert (name == "short") <= truncated < len(rows)

    again = run(checkpoint, data, tmp_path / "b")
    assert again.cells == first.cells
    assert read_details(tmp_path / "b" / DETAILS) == samples
