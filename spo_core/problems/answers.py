r"""Reads the answer out of a completion: after ``####``, in the last ``\boxed{}``, or in a closing sentence.

All functions take time linear in the text, as policies may write anything.
"""

from __future__ import annotations

import re

_HOPE = re.compile(r"I hope it is correct", re.IGNORECASE)
_TOKENS = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*\{?|\\.|[{}]", re.DOTALL)
_EMPTY_BOX = re.compile(r"\$?\\(?:boxed|fbox)\s*\{\s*\}\$?")
_SENTENCE = re.compile(
    r"(?:\banswers?|\bcorrect (?:option|choice))\s*(?:\*\*)?\s*(?:is|are|:|=)(?![a-z])\s*:?\s*(?:```[a-z]*\s+)?"
    r"|^(?:#+ ?|\*\*)(?:final )?answer(?:\*\*)?\s*\n\s*|<answer>\s*",
    re.IGNORECASE | re.MULTILINE,
)
_ASIDE = (
    "because|since|which|where|so|as|thus|hence|therefore|that is|i\\.e\\.|meaning|making|giving|given|assuming|after|"
    "when|while|if|not|rounded|in total|in all|altogether|for a total|as required|"
    "and (?:so|thus|hence|we|this|that|not)"
)
"""Words that begin a clause which only explains the answer before it."""
_SENTENCE_END = re.compile(
    rf"\.(?=\s|$|\\\)|\\\])|!(?=\s*$|\s+[A-Z])|\n|</answer>"
    rf"|,? (?:because|since|which|where|so|as|and (?:so|thus|hence|we|this|that|not))(?= )"
    rf"|[,;:] (?:{_ASIDE})\b|; (?=[a-z]{{2}})"
    rf"|,? \((?:{_ASIDE}|from|note|check|see|by|using|or|\d[^()]*=)(?=[ ,:\d=+*/(-])"
    r"|,? (?:--|–|—) (?=[a-z]{2})"
)
_DISPLAY = re.compile(
    r"(?:\$\$|\\\[|\\begin\{(equation|align|gather|displaymath)\*?\})\s*(.*?)\s*(?:\$\$|\\\]|\\end\{\1)", re.DOTALL
)
_FILLER = re.compile(r"(?:therefore|thus|simply|just|given by)[,:]?\s+", re.IGNORECASE)
_LONGEST = 2000  # characters of displayed mathematics
_LATEST = 3  # sentences that are tried, from the end


def after_hashes(completion: str) -> str | None:
    """The answer behind the last ``####``, on its line or the next one with text (GSM8K); None where there is none."""
    _, marker, rest = completion.rpartition("####")
    if not marker or not rest.strip():
        return None
    return _first_clause(_without_hope(rest.strip().split("\n", 1)[0])) or None


def unusable_gold(answer: str) -> str | None:
    """Say why no completion can be graded by this gold answer; None where one can.

    A completion's answer is what stands behind its last mark, so it never holds one.
    """
    if "####" in answer:
        return "holds the mark ####, as a whole solution does; give the answer alone"
    if boxes(answer) and not answer.lstrip(" $").startswith(("\\boxed", "\\fbox")):
        return "holds a box with text before it, as a whole solution does; give the answer alone"
    if answer.strip().lower() in ("nan", "-nan", "+nan"):
        return "is NaN"
    return None


def boxes(text: str) -> list[str]:
    r"""Contents of every closed, outermost ``\boxed{...}`` and ``\fbox{...}``, with braces matched.

    ``\boxed 5``, without braces, has the one character that LaTeX would put into the box.
    """
    begins = [at for name in ("\\boxed", "\\fbox") if (at := text.find(name)) >= 0]
    if not begins:
        return []
    first = min(begins)
    while first and text[first - 1] == "\\":  # of an even number of backslashes the last one belongs to the one before
        first -= 1
    closed: list[tuple[int, int]] = []  # where the contents begin and end
    opened: list[int | None] = []  # where the contents of each open brace begin, None for braces that are no box
    for match in _TOKENS.finditer(text, first):
        token = match.group()
        if token == "{":
            opened.append(None)
        elif token == "}":
            begin = opened.pop() if opened else None
            if begin is not None:
                while closed and closed[-1][0] >= begin:  # boxes within this one
                    closed.pop()
                closed.append((begin, match.start()))
        elif len(token) > 2 and token.endswith("{"):
            opened.append(match.end())
        elif len(token) > 2 and match.end() < len(text):
            closed.append((match.end(), match.end() + 1))
    return [text[begin:end].strip() for begin, end in closed]


def final_answer(completion: str) -> str | None:
    """The last box that is not empty or, without one, the answer in the last "the (final) answer is ..."; else None.

    The text behind ``</think>`` is read first; where it states no answer, the whole completion.
    """
    _, thought, conclusion = completion.rpartition("</think>")
    if thought and (answer := _stated(conclusion)) is not None:
        return answer
    return _stated(completion)


def _stated(text: str) -> str | None:
    boxed = [box for box in boxes(text) if box]
    return boxed[-1] if boxed else _sentence(text)


def _sentence(text: str) -> str | None:
    """The answer in the last sentence that states one."""
    for match in list(_SENTENCE.finditer(text))[: -_LATEST - 1 : -1]:
        rest = _without_hope(text[match.end() :])
        display = _DISPLAY.match(rest[:_LONGEST])
        answer = display[2].rstrip(".,;") if display else _first_clause(rest).strip(" *_\t")
        if "\n" in match.group():
            answer = answer.removeprefix("- ")  # the bullet of a list
        answer = _FILLER.sub("", _balanced(answer), count=1).strip()
        if answer and not _EMPTY_BOX.fullmatch(answer):
            return answer
    return None


def _first_clause(text: str) -> str:
    """Cut the text at the end of the sentence, or of the clause that says the answer."""
    end = _SENTENCE_END.search(text)
    return (text[: end.start()] if end else text).strip()


def _balanced(answer: str) -> str:
    r"""Remove a brace that closes what began before the answer, as in ``\textbf{Answer: } 5``."""
    if answer.count("}") > answer.count("{"):
        return (answer[1:] if answer.startswith("}") else answer.removesuffix("}")).strip()
    return answer


def _without_hope(answer: str) -> str:
    """Remove the "I hope it is correct" that templates ask for, and what stands after it."""
    hope = _HOPE.search(answer)
    return (answer[: hope.start()].rstrip(" .\n") if hope else answer).strip()
