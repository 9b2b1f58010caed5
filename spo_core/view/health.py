"""Health of a run at a glance: one line a number, with a threshold and why it is that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from spo_core.config import LearnParams
from spo_core.observe.formatting import known, number
from spo_core.rollout.gap import LIMITS, WARNING

Rows = Sequence[Mapping[str, Any]]
RECENT = 5  # iterations whose mean is judged
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Sign:
    """A number of a run's last iterations. ``well`` is None where it was not measured or has no threshold."""

    name: str
    shown: str
    threshold: str
    well: bool | None
    why: str
    metric: str
    """Key of the metric that it is computed from, whose curve stands on the page."""


def signs(rows: Rows, params: Mapping[str, Any], silent_groups: float | None) -> list[Sign]:
    """Judge the last RECENT iterations. ``silent_groups``: share of the newest recorded iteration's questions that
    train nothing; None where no iteration is recorded."""
    limit = _gap_limit(params)
    shares = {
        name: (key, most)
        for name, key, most in (
            ("truncated", "rollout/truncated_share", 0.3),
            ("no answer", "rollout/no_answer_share", 0.2),
            ("unparsable", "rollout/unparsable_share", 0.05),
            ("timeouts in grading", "rollout/timeout_share", 0.01),
        )
    }
    whys = {
        "truncated": "A response cut off by the limit has no answer to credit. Above three in ten the policy learns "
        "to be short before it learns to be right; raise rollout.context_length, or look at whether it ever stops.",
        "no answer": "Responses that end without stating an answer. Above one in five the prompt, the template or the "
        "stop token is suspect before the policy is.",
        "unparsable": "An answer that the grader cannot read counts as wrong. Above one in twenty it teaches notation, "
        "not mathematics; look at some below their question.",
        "timeouts in grading": "Comparisons that took too long count as not correct; a run stops at "
        "verify.max_failed_share. Above one in a hundred look at what is compared.",
    }
    found = [
        _above(
            "log-prob gap",
            rows,
            "sync/logprob_gap_mean",
            WARNING * limit,
            "Mean |engine's log-prob − trainer's| over sampled tokens, in nats. Beyond "
            f"{number(limit, 4)} the run stops: the engine samples from other weights, or at another temperature, than "
            "those that are trained. From a quarter of that on it is probably more than rounding.",
            lambda x: f"{x:.2g}",
        ),
        _entropy(rows),
        _above(
            "clip fraction",
            rows,
            "train/clip_fraction",
            0.3,
            "Share of trained tokens whose ratio left the clip range, so that they no longer move. Above 0.3 most of "
            "an iteration's later steps are wasted: fewer steps or epochs, or a smaller learning rate.",
        ),
    ]
    found += [_above(name, rows, key, most, whys[name]) for name, (key, most) in shares.items()]
    found.append(
        Sign(
            "groups without signal",
            number(silent_groups),
            "at most 0.6",
            None if silent_groups is None else silent_groups <= 0.6,
            "Share of the newest recorded iteration's questions that train nothing: all their responses have one "
            "reward, or no token is in the mask. Their tokens are paid for and teach nothing; choose harder or easier "
            "questions, or more responses each.",
            "credit/segments_with_advantage",
        )
    )
    if params.get("learn.kl.type") == "penalty":
        found.append(
            _above(
                "KL to the reference policy",
                rows,
                "train/kl",
                0.2,
                "Nats a token, as the penalty estimates it. Above 0.2 the policy writes another language than the one "
                "it started from; if reward does not rise with it, it is drifting.",
            )
        )
    found.append(_gradient(rows, params))
    found.append(_speed(rows))
    if memory := _recent(rows, "memory/gpu_peak_bytes"):
        found.append(
            Sign(
                "GPU memory at its highest",
                f"{memory / GIB:.1f} GiB",
                "",
                None,
                "What the flow's process had allocated on its GPU at most; other processes' memory is not in it.",
                "memory/gpu_peak_bytes",
            )
        )
    return found


def _gap_limit(params: Mapping[str, Any]) -> float:
    """The limit of the gap that a run's identity leads to, as ``rollout.gap.gap_limit`` has it."""
    asked = params.get("learn.max_logprob_gap")
    if isinstance(asked, int | float):
        return float(asked)
    default = str(LearnParams.model_fields["dtype"].default)
    dtypes = (params.get("learn.dtype") or default, params.get("rollout.engine.dtype") or "float32")
    return max(LIMITS.get(str(dtype), LIMITS["float32"]) for dtype in dtypes)


def _values(rows: Rows, key: str) -> list[float]:
    return [value for row in rows if isinstance(value := row.get(key), int | float) and known(value)]


def _recent(rows: Rows, key: str) -> float | None:
    """Mean of the last RECENT iterations that have the metric."""
    values = _values(rows, key)[-RECENT:]
    return sum(values) / len(values) if values else None


def _above(name: str, rows: Rows, key: str, most: float, why: str, shown: Callable[[float], str] = number) -> Sign:
    value = _recent(rows, key)
    well = None if value is None else value <= most
    return Sign(name, number(None) if value is None else shown(value), f"at most {shown(most)}", well, why, key)


def _entropy(rows: Rows) -> Sign:
    values, key = _values(rows, "train/entropy"), "train/entropy"
    why = (
        "Mean entropy, in nats, of the distributions that trained tokens were sampled from. Where it falls below a "
        "tenth of what it was in the first iterations, responses are nearly all the same and groups have no signal."
    )
    if len(values) < 2:
        return Sign("entropy", number(values[-1] if values else None), "", None, why, key)
    first, last = sum(values[:RECENT]) / len(values[:RECENT]), _recent(rows, key)
    assert last is not None
    return Sign("entropy", number(last), f"at least {number(first / 10)}", last >= first / 10, why, key)


def _gradient(rows: Rows, params: Mapping[str, Any]) -> Sign:
    values, key = _values(rows, "train/grad_norm"), "train/grad_norm"
    clip = params.get("learn.max_grad_norm")
    clipped = f" It is clipped to {clip}." if clip else ""
    why = (
        "Before clipping, mean over the iteration's optimizer steps. One far above ten times the run's median is a few "
        "tokens that decide the whole step, or a learning rate at which training comes apart." + clipped
    )
    if len(values) < 3:
        return Sign("gradient norm", number(_recent(rows, key)), "", None, why, key)
    most, last = 10 * median(values), sum(values[-RECENT:]) / len(values[-RECENT:])
    return Sign("gradient norm", number(last), f"at most {number(most)}", last <= most, why, key)


def _speed(rows: Rows) -> Sign:
    values, key = _values(rows, "timing/generated_tokens_per_second"), "timing/generated_tokens_per_second"
    why = (
        "Generated tokens per second of the rollout step. Below half of the run's own median something else uses the "
        "machine, an engine restarts, or responses have become much longer."
    )
    if len(values) < 3:
        return Sign("tokens per second", number(_recent(rows, key), 0), "", None, why, key)
    least, last = median(values) / 2, sum(values[-RECENT:]) / len(values[-RECENT:])
    return Sign("tokens per second", number(last, 0), f"at least {number(least, 0)}", last >= least, why, key)
