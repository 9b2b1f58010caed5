"""Worker processes that call rewards: ``python -m spo_core.verify.reward_worker <descriptor of a socket> SETTINGS``.

SETTINGS is JSON: the project's folder, and key, path and options of each function. An answer is the sum of what they
give, or text that says what is wrong.
"""

from __future__ import annotations

import json
import math
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spo_core.errors import type_and_line
from spo_core.problems.base import Question
from spo_core.system.plugins import load, open_project
from spo_core.verify.fork_server import serve
from spo_core.verify.outcome import Outcome
from spo_core.verify.reward import RewardFunction

MOST = 500  # most characters of an error
_functions: list[tuple[str, Callable[..., Any]]] = []


def warm() -> None:
    settings = json.loads(sys.argv[2])
    open_project(Path(settings["project"]))
    for key, path, options in settings["terms"]:
        _functions.append((f"{key}: {path}", load(key, path, options, RewardFunction)))


def rewarded(completion: str, question: dict[str, str], outcome: str, finish: str) -> str:
    total = 0.0
    for where, function in _functions:
        try:
            found = function(completion, Question(**question), Outcome(outcome), finish)
            number = float(found)
        except MemoryError:
            raise  # ends the worker: a timeout, as in a comparison
        except Exception as error:
            traceback.print_exc()
            return json.dumps(f"{where} failed with {type_and_line(error)}"[:MOST])
        if isinstance(found, str) or not math.isfinite(number):
            return json.dumps(f"{where} gave {found!r}; a reward is a finite number"[:MOST])
        total += number
    return json.dumps(total)


if __name__ == "__main__":
    serve(warm, rewarded, int(sys.argv[1]))
