"""Part 3: the embedded run, from data to trained policy, without Prefect; its accuracy against the CPU's."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.setting import Result, Setting, table
from spo_core.config import load_params
from spo_core.paths import Paths
from spo_core.problems.prepare import prepare_splits
from spo_core.system.files import read_json
from spo_core.train.opening import open_session
from spo_core.train.steps import credit_step, rollout_step, train_step
from spo_core.train.warmup import warm_up

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "metrics" / "train.json"  # of the demo's run on a CPU
ERRORS = 3.0  # standard errors of the difference
SMALL = (
    "run.threads=1",
    "verify.workers=1",
    "rollout.context_length=48",
    "data.train=40",
    "data.validation=6",
    "data.test=6",
    "policy.init.hidden_size=32",
    "policy.init.layers=2",
    "policy.init.heads=2",
    "policy.warmup.steps=20",
    "run.iterations=2",
    "run.validate_every=2",
    "rollout.questions=4",
)


def run(setting: Setting) -> Result:
    """Run the embedded pipeline and compare its best validation accuracy with the recorded run's."""
    overrides = (f"run.device='{setting.device}'", *(SMALL if setting.small else ()))
    params = load_params(ROOT, None, overrides)
    content: dict[str, Any] = {"device": str(setting.device)}
    with tempfile.TemporaryDirectory() as folder:
        paths = Paths(Path(folder))
        prepare_splits(params, paths)
        started = time.perf_counter()
        losses = warm_up(params, paths)
        content["warmup"] = {"seconds": time.perf_counter() - started, "loss": losses[-1]["warmup/loss"]}
        started = time.perf_counter()
        with open_session(params, paths) as session:
            while not session.finished and setting.left > 0:
                number = session.iteration + 1
                rollout_step(session, number)
                credit_step(session, number)
                train_step(session, number)
            rows, best, questions = session.run.read_metrics(), session.best, len(session.validation)
        content["training"] = {
            "seconds": time.perf_counter() - started,
            "iterations": rows[-1]["iteration"] if rows else 0,
            "of": params.run.iterations,
            "generated_tokens_per_second": rows[-1]["timing/generated_tokens_per_second"] if rows else None,
            "logprob_gap": max((row["train/logprob_gap"] for row in rows if "train/logprob_gap" in row), default=None),
            "accuracy": None if best is None else best.accuracy,
        }
    wrong = None if setting.small else compared(content, questions)
    shown = table("3. The embedded run", "", "here", "recorded on a CPU")
    done, recorded = content["training"], read_json(RECORDED)
    shown.add_row("warm-up, s", f"{content['warmup']['seconds']:.1f}", "")
    shown.add_row("training, s", f"{done['seconds']:.1f}", f"{recorded['seconds']:.1f}")
    shown.add_row("iterations", f"{done['iterations']} of {done['of']}", str(recorded["iterations"]))
    accuracy = "" if done["accuracy"] is None else f"{done['accuracy']:.3f}"
    shown.add_row("best validation accuracy", accuracy, f"{recorded['best_validation_accuracy']:.3f}")
    return Result(shown, content, wrong)


def compared(content: dict[str, Any], questions: int) -> str | None:
    """Say what is wrong with the accuracy, if anything; None too where the time was over before the run was."""
    done, recorded = content["training"], read_json(RECORDED)
    if done["iterations"] < done["of"]:
        content["stopped"] = "the part's time was over"
        return None
    mean = (done["accuracy"] + recorded["best_validation_accuracy"]) / 2
    error = math.sqrt(2 * mean * (1 - mean) / questions)
    content["standard_error_of_difference"] = error
    apart = done["accuracy"] - recorded["best_validation_accuracy"]
    if abs(apart) <= ERRORS * error:
        return None
    return f"accuracy {done['accuracy']:.3f} is {abs(apart) / error:.1f} standard errors from the CPU's"
