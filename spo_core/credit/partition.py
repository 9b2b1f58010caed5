"""Cuts a sampled response into segments. Segments of fixed length are cut while sampling, in ``rollout/sampler.py``.

A cutpoint c means the state after tokens 0..c of the response, so the prefix is ``y[:c+1]``; c = -1 is the prompt.
Functions return rising cutpoints. None but ``reference_equal_parts`` cuts behind the last token: the last segment's
value is its true reward, which an estimate must not replace.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from spo_core.config import Cutpoints, Delimiter, Entropy, EqualParts
from spo_core.config.credit import CutPartition
from spo_core.credit.mask import is_low


def cut(
    params: CutPartition,
    logprobs: np.ndarray,
    *,
    entropies: np.ndarray | None = None,
    texts: Sequence[str] | None = None,
) -> list[int]:
    """Cutpoints of one response by the partition chosen, from its sampling log-probs [n].

    ``entropy`` needs ``entropies`` [n] in nats, ``delimiter`` needs ``texts``, the text that each token adds;
    ValueError where they are missing.
    """
    match params:
        case Cutpoints():
            return cutpoints(logprobs, params.prob_threshold, params.interval)
        case EqualParts():
            return equal_parts(len(logprobs), params.parts)
        case Delimiter():
            if texts is None:
                raise ValueError("partition delimiter needs the text of every token")
            return delimiter(texts, params.text, params.max_cuts)
        case Entropy():
            if entropies is None:
                raise ValueError("partition entropy needs the entropy at every token")
            return entropy_cuts(entropies, params.threshold, params.interval)


def cutpoints(logprobs: Sequence[float] | np.ndarray, prob_threshold: float, interval: int) -> list[int]:
    """Cutpoints of one trajectory, SPO-chain (paper section 4.1; docs/reference.md 1.1 step 5).

    ``logprobs`` [n] are the sampling log-probs of the response. Tokens with probability strictly below
    ``prob_threshold`` are counted; every ``interval``-th, beginning with the first, is cut *just before*.
    """
    return _before(is_low(logprobs, prob_threshold), interval)


def entropy_cuts(entropies: Sequence[float] | np.ndarray, threshold: float, interval: int) -> list[int]:
    """Cut as ``cutpoints`` does, before tokens sampled at an entropy (nats, [n]) strictly above ``threshold``."""
    return _before(np.asarray(entropies) > threshold, interval)


def _before(candidates: np.ndarray, interval: int) -> list[int]:
    return [int(t) - 1 for t in np.flatnonzero(candidates)[::interval]]


def equal_parts(length: int, parts: int) -> list[int]:
    """Cutpoints that leave ``parts`` segments of nearly equal length, longer ones first; one a token if too short.

    docs/reference.md 1.2, without its repeated cuts and without a cut at the last token: there, the reference's
    estimate overwrites the final reward of responses shorter than ``parts``, which we take for a defect.
    """
    return sorted({c for c in reference_equal_parts(length, parts) if c < length - 1})


def reference_equal_parts(length: int, parts: int) -> list[int]:
    """The reference's own list of ``parts`` - 1 cuts (docs/reference.md 1.2), for comparison with it.

    The paper's "segment count 3" is ``parts`` = 4 in the reference's code: three cuts, four segments.
    """
    whole, longer = divmod(length, parts)
    return [int(end) - 1 for end in np.cumsum([whole + (i < longer) for i in range(parts)])[:-1]]


def delimiter(texts: Sequence[str], text: str, max_cuts: int | None = None) -> list[int]:
    """Cutpoints behind tokens that complete an occurrence of ``text``, which may span tokens (VinePPO,
    docs/reference.md 1.4).

    Occurrences do not overlap. There is no cut where no text follows, though an end-of-sequence token may: the value
    at the end of the last step is the response's reward. ``max_cuts`` keeps the first ones.
    """
    whole = "".join(texts)
    ends = np.cumsum([len(own) for own in texts])
    cuts: list[int] = []
    at = whole.find(text)
    while at >= 0:
        at += len(text)
        token = int(np.searchsorted(ends, at))  # the first token that reaches the occurrence's end
        if ends[token] < len(whole) and token not in cuts[-1:]:
            cuts.append(token)
        at = whole.find(text, at)
    return cuts[:max_cuts]


def segment_bounds(length: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """Half-open token ranges of the segments between cutpoints; they cover 0..length without a gap.

    A cut at -1, the prompt, is where the first segment begins anyway. Raises ValueError unless cuts rise within
    ``length``.
    """
    if length < 1:
        raise ValueError(f"a trajectory has at least one token, not {length}")
    starts = [0, *(c + 1 for c in cuts if c >= 0)]
    if any(b <= a for a, b in pairwise(starts)) or starts[-1] >= length:
        raise ValueError(f"cutpoints {list(cuts)} do not rise within a trajectory of {length} tokens")
    return list(zip(starts, [*starts[1:], length], strict=True))
