r"""The exact grader: decides whether the answer given is the gold answer.

It reads both - ``notation`` unifies their spelling, ``structures`` tells their kind, ``expressions`` and math-verify
(``library``) read mathematics, ``phrases`` numbers in English, ``units`` units - and compares them exactly
(``matching``, ``equality``). docs/grading.md says what is equal to what, by kind. Its policies:

- numbers are exact: 0.333 is not 1/3. ``10,00`` is no number, ``0,100`` a list;
- expressions are equal wherever both are defined, for real letters: constants to 150 digits, functions at a dozen
  points to 48. Roots and logarithms are the partial functions of school, so ``\sqrt{a}\sqrt{b}`` is ``\sqrt{ab}``,
  and the root of ``x^2`` is not ``x``; equations are equal up to a constant factor and what they are divided by;
- ``x = 5`` says 5, ``y = 5`` does not say ``x = 5``, and ``2a = 10`` does not say 10;
- units may be left out, on either side, two that differ are two answers, nothing is converted; words that negate or
  change a number are no units. 5% is exactly 0.05, and is 5 with the sign left out; but 0.5 is not 0.5%. A right angle
  is 90 and pi/2;
- letter case does not matter in words, in a lone letter and in lists of choices; it does in all else;
- order matters in tuples and bare lists; not in ``{1,2}``, "1 or 2", "1 and 2", ``\pm 2`` or several equations;
- ``(0,1)``, ``[0,1)`` and ``[0,1]`` differ; ``(1,2)`` is a point or an open interval, as the other has it;
- ``101_2`` equals no bare numeral (unless the base is ten), nor one in another base; ``3 \pmod 5`` says 3, not 8;
- names of geometry may go without their sign: ``\triangle ABC`` is ``ABC``, but not ``\angle ABC``;
- around the answer fonts, colours, quotes and "The answer is" say nothing; other words do. Several answers are not
  one of them: "5 or 6" is not 5.
"""

from __future__ import annotations

from spo_core.verify.exact.literals import parse_number
from spo_core.verify.exact.notation import LONGEST, normalise
from spo_core.verify.outcome import Outcome


def compare(given: str, gold: str) -> Outcome:
    """CORRECT, WRONG, or UNPARSABLE where the gold answer is mathematics and the one given cannot be read as any.

    Raises MemoryError, and ImportError and NameError, which only a bug here can raise. May take long over large
    mathematics, so callers limit its time and memory.
    """
    outcome = quick(given, gold)
    if outcome is None:
        try:
            outcome = _read_and_compare(normalise(given), normalise(gold))
        except (MemoryError, ImportError, NameError):
            raise
        except Exception:  # sympy failed: nothing was compared, so WRONG would be false
            outcome = Outcome.UNPARSABLE
    return outcome


def quick(given: str, gold: str) -> Outcome | None:
    """Outcome for equal texts and for plain numbers; None for anything else, which takes sympy."""
    if given == gold and given:
        return Outcome.CORRECT
    number, expected = parse_number(given), parse_number(gold)
    if number is None or expected is None:
        return None
    return Outcome.CORRECT if number == expected else Outcome.WRONG


def _read_and_compare(given: str, gold: str) -> Outcome:
    if given == gold and given:
        return Outcome.CORRECT
    if len(given) > LONGEST or len(gold) > LONGEST:
        return Outcome.UNPARSABLE if len(given) > LONGEST else Outcome.WRONG

    from sympy.core.random import seed

    from spo_core.verify.exact.matching import same_answer
    from spo_core.verify.exact.nodes import NOTHING, Amount, Letter, Several, Value, Words
    from spo_core.verify.exact.structures import read

    seed(0)
    answer, expected = read(given), read(gold)
    if isinstance(expected, Amount) and expected.unit is None:
        expected = Value(expected.product)  # a gold 2k is twice k; only an answer given may mean 2000
    if same_answer(answer, expected):
        return Outcome.CORRECT
    parts = expected.items if isinstance(expected, Several) else (expected,)
    mathematics = not all(isinstance(part, Words | Letter) for part in parts)
    unread = isinstance(answer, Words) and answer != NOTHING
    return Outcome.UNPARSABLE if unread and mathematics else Outcome.WRONG
