"""The type of callbacks to which long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with two counts as work goes on: optimizer steps done and to do; responses and tokens of a rollout so far;
completions of an evaluation sampled and to sample."""
