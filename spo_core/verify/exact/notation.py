r"""One spelling for every notation: Unicode, LaTeX styles, spacing and braces.

``normalise`` changes how an answer is written and never what it says. Words stay apart from mathematics:
whatever stood in ``\text``, ``\mbox``, ``\mathrm``... stands in ``\text{...}`` afterwards, unless it was all there is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

LONGEST = 2000
"""Longer texts are no answers: they are compared as they stand."""

_ROUNDS = 60  # nested wrappers go one per round; text in need of more is left half-unwrapped

_SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ",
    "÷": r"\div ", "π": r"\pi ", "°": r"^\circ ", "º": r"^\circ ", "≤": r"\leq ", "≥": r"\geq ", "⩽": r"\leq ",
    "⩾": r"\geq ", "≠": r"\neq ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ",
    "∓": r"\mp ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "≈": r"\approx ", "√": r"\sqrt ",
    "⁄": "/", "∕": "/", "“": '"', "”": '"', "‘": "'", "’": "'",
    "…": r"\ldots ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ",
    "λ": r"\lambda ", "μ": r"\mu ", "φ": r"\phi ", "ϕ": r"\phi ", "ω": r"\omega ", "⟨": r"\langle ", "⟩": r"\rangle ",
    "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "∖": r"\setminus ", "€": r"\text{ euros}",
    "£": r"\text{ pounds}", "¢": r"\text{ cents}", "\u00ad": "", "\u200b": "", "\ufeff": "",
}  # fmt: skip
_SCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ₀₁₂₃₄₅₆₇₈₉", "0123456789-+n0123456789")
_SUPERSCRIPTS = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+")
_SUBSCRIPTS = re.compile(r"[₀₁₂₃₄₅₆₇₈₉]+")
_SYMBOL = re.compile("[" + "".join(_SYMBOLS) + "]")
_VULGAR = re.compile(r"[¼-¾⅐-⅞↉]")

# Commands with a plainer synonym, or none at all.
_SYNONYMS = {
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\dbinom": r"\binom", r"\tbinom": r"\binom",
    r"\le": r"\leq", r"\leqslant": r"\leq", r"\ge": r"\geq", r"\geqslant": r"\geq", r"\ne": r"\neq", r"\lt": "<",
    r"\gt": ">", r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lvert": "|", r"\rvert": "|", r"\vert": "|", r"\mid": "|",
    r"\lbrack": "[", r"\rbrack": "]", r"\varnothing": r"\emptyset", r"\degree": r"^\circ", r"\ast": r"\cdot",
    r"\dots": r"\ldots", r"\cdots": r"\ldots", r"\colon": ":", r"\lor": r"\text{ or }", r"\vee": r"\text{ or }",
    r"\land": r"\text{ and }", r"\wedge": r"\text{ and }", r"\infin": r"\infty", r"\varphi": r"\phi",
    r"\varepsilon": r"\epsilon", r"\bigcup": r"\cup", r"\bigcap": r"\cap", r"\backslash": r"\setminus",
    r"\smallsetminus": r"\setminus", r"\R": r"\mathbb{R}", r"\Reals": r"\mathbb{R}", r"\reals": r"\mathbb{R}",
    r"\euro": r"\text{ euros}", r"\pounds": r"\text{ pounds}", r"\lg": r"\log_{10}", r"\percent": r"\%",
    r"\dollar": r"\$", r"\implies": r"\Rightarrow", r"\thickapprox": r"\approx", r"\simeq": r"\approx",
}  # fmt: skip
_SILENT = r"""
    \left \right \big \Big \bigg \Bigg \bigl \bigr \Bigl \Bigr \biggl \biggr \displaystyle \textstyle \scriptstyle
    \limits \nolimits \! \( \) \[ \] \rm \bf \it \mathstrut \strut \/ \protect \ensuremath
    \tiny \scriptsize \footnotesize \small \normalsize \large \Large \LARGE \huge \Huge \bfseries \itshape
"""
_NOTHING = frozenset(_SILENT.split())
_SPACES = frozenset([r"\,", r"\;", r"\:", r"\>", "\\ ", "\\\n", "\\\t", r"\quad", r"\qquad", r"\thinspace", r"\space"])
_FONT_COMMANDS = r"""
    \text \textbf \textit \textrm \textsf \texttt \textnormal \textsc \emph \mbox \hbox \mathrm \mathbf \mathit
    \mathsf \mathtt \mathnormal \boldsymbol \bm \pmb \operatorname \underline \boxed \fbox \mathcal \vec
"""
_FONTS = frozenset(_FONT_COMMANDS.split())
_TYPES = frozenset([r"\mathbf", r"\boldsymbol", r"\bm", r"\pmb", r"\mathcal", r"\mathit", r"\vec"])
_FUNCTIONS = (
    "sqrt|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|exp|pi|theta|infty|infinity|inf|oo|"
    "alpha|beta|gamma|delta|epsilon|zeta|kappa|lambda|rho|sigma|tau|phi|chi|psi|omega|"
    r"(?:gcd|lcm|max|min)(?=\()"
)
_BARE_FUNCTION = re.compile(rf"(?<![a-zA-Z\\])(?:{_FUNCTIONS})(?![a-zA-Z])")
_COMMAND = re.compile(r"\\(?:[a-zA-Z]+|.)", re.DOTALL)
_FONT_GROUP = re.compile(r"(\\[a-zA-Z]+)\s*\{([^{}]*)\}")
_TYPED_LETTER = re.compile(r"\\(?:vec|mathbf|boldsymbol|bm) ([a-zA-Z])(?![a-zA-Z])")
_OUTER = re.compile(r"(\\[a-zA-Z]+)\s*\{")
_COLOURED = re.compile(r"\\(?:textcolor|colorbox)\s*\{[^{}]*\}\s*(?=\{)")
_UNSEEN = re.compile(r"\\(?:[hv]?phantom|[hv]space|tag|label)\*?\s*(?=\{)|\\color\s*(?=\{)")
_INFIX = re.compile(r"\\(over|choose)(?![a-zA-Z])|\\.|[{}]", re.DOTALL)
_QUOTED = re.compile(r"(['\"`]+)([^'\"`]+)(['\"`]+)")
_PREFIX = r"(?:(?:so|thus|hence|therefore),? )?(?:(?:the|my|our) )?(?:(?:final|correct) )?answer(?: is:?|:) ?"
_PREFIXES = re.compile(rf"(?:\\text\{{{_PREFIX}\}} ?|{_PREFIX})(?!not\b|\\text\{{ ?not\b)(?=.)", re.IGNORECASE)
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:(?:\{,\}|,\s*\\!|\\,|\\ |~|\\;|\\:|\{\\,\}|\\!,)\s*\d{3})+(?!\d)")
_SPACED_THOUSANDS = re.compile(r"(?<![\w.,/^{ ])[1-9]\d{0,2}(?: \d{3})+(?![\w/]| ?[\\/\d])", re.ASCII)
_BRACED_THOUSANDS = re.compile(r"(?<!\\)\{[1-9]\d{0,2}(?:,\d{3})+\}")
_ARGUMENT = r"(?:\d|[a-zA-Z]|\\[a-zA-Z]+(?![a-zA-Z{]))"
_TIGHT = re.compile(r" ?([()\[\]+\-=<>|^_/:;&!*]|\\[{}]|(?<!\\)[{}]) ?")


def normalise(text: str) -> str:
    """The one spelling of ``text``; ``normalise(normalise(text)) == normalise(text)``."""
    text = " ".join(_printable(text).split()) if len(text) <= LONGEST else text.strip()
    for _ in range(_ROUNDS):
        if len(text) > LONGEST:
            break
        before = text
        for step in _STEPS:
            text = step(text)
        if text == before:
            break
    return text


def closing(text: str, begin: int) -> int | None:
    """Where the brace or bracket that opens at ``begin`` closes; None where it does not."""
    depth = 0
    for match in _BRACKETS.finditer(text, begin):
        token = match.group()
        if token in OPENING:
            depth += 1
        elif token in CLOSING:
            depth -= 1
            if depth == 0:
                return match.start()
    return None


OPENING = frozenset(["(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil"])
CLOSING = frozenset([")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil"])
_BRACKETS = re.compile(r"\\[a-zA-Z]+|\\.|[()\[\]{}]", re.DOTALL)


def _printable(text: str) -> str:
    return "".join(" " if unicodedata.category(char) in ("Cc", "Cs", "Zs") else char for char in text)


def _unicode(text: str) -> str:
    if text.isascii():
        return text
    text = _SUPERSCRIPTS.sub(lambda match: "^{" + match.group().translate(_SCRIPTS) + "}", text)
    text = _SUBSCRIPTS.sub(lambda match: "_{" + match.group().translate(_SCRIPTS) + "}", text)
    text = _VULGAR.sub(_vulgar, text)
    text = re.sub(r"√\s*(\d+(?:\.\d+)?)", r"\\sqrt{\1}", text)  # whole numbers, where \sqrt takes a digit
    text = re.sub(r"([€£])\s*(\d[\d.,]*)", r"\2\1", text)
    text = _SYMBOL.sub(lambda match: _SYMBOLS[match.group()], text)
    return unicodedata.normalize("NFKC", text)  # full-width digits, letters and signs


def _vulgar(match: re.Match[str]) -> str:
    above, _, below = unicodedata.normalize("NFKC", match.group()).partition("⁄")
    return rf"\frac{{{above}}}{{{below}}}"


def _dollars(text: str) -> str:
    r"""Without ``$`` as a delimiter of mathematics; money keeps it, as ``\$``."""
    bare = [match.start() for match in re.finditer(r"(?<!\\)\$", text)]
    if not bare:
        return text
    return re.sub(r"(?<!\\)\$", "" if len(bare) % 2 == 0 else r"\\$", text)


def _commands(text: str) -> str:
    text = re.sub(r"\\(?:left|right)\s*\.", "", text.replace("~", " "))
    return _COMMAND.sub(_command, text)


def _command(match: re.Match[str]) -> str:
    name = match.group()
    if name in _NOTHING:
        # a letter behind must not become part of the command before
        return " " if name[-1].isalpha() else ""
    if name in _SPACES:
        return " "
    plain = _SYNONYMS.get(name)
    if plain is None:
        return name
    return plain + " " if plain[-1].isalpha() else plain


def _thousands(text: str) -> str:
    text = _THOUSANDS.sub(lambda match: re.sub(r"\D", "", match.group()), text)
    text = _SPACED_THOUSANDS.sub(lambda match: match.group().replace(" ", ""), text)
    text = _BRACED_THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)
    return re.sub(r"(?<![a-zA-Z])\{,\}", ",", text)


def _fonts(text: str) -> str:
    r"""Boxes unwrapped, fonts all ``\text``, and none around what is no word."""
    text = _TYPED_LETTER.sub(r" \1", _without_wrapper(text))
    text = _FONT_GROUP.sub(_font, text)
    whole = re.fullmatch(r"\\text\{([^{}]*)\}", text)
    return whole.group(1) if whole else text


def _without_wrapper(text: str) -> str:
    match = _OUTER.match(text)
    if match and match.group(1) in _FONTS and closing(text, match.end() - 1) == len(text) - 1:
        return text[match.end() : -1]
    return text


def _styles(text: str) -> str:
    """Without colours, and without what takes room and shows nothing."""
    for pattern in (_COLOURED, _UNSEEN):
        match = pattern.search(text)
        end = closing(text, match.end()) if match else None
        if match and end is not None:
            shown = text[match.end() + 1 : end] if pattern is _COLOURED else " "
            apart = " " if shown[:1].isalpha() and text[: match.start()][-1:].isalpha() else ""
            text = text[: match.start()] + apart + shown + text[end + 1 :]
    return text


def _infix(text: str) -> str:
    r"""``{1 \over 2}`` and ``{5 \choose 2}`` as ``\frac`` and ``\binom``."""
    begins: list[int] = []
    for match in _INFIX.finditer(text):
        token = match.group()
        if token == "{":
            begins.append(match.start())
        elif token == "}":
            begins = begins[:-1]
        elif match.group(1):
            end = closing(text, begins[-1]) if begins else len(text)
            if end is None:
                return text
            begin = begins[-1] + 1 if begins else 0
            above, below = text[begin : match.start()].strip(), text[match.end() : end].strip()
            if not above or not below or re.search(r"\\(?:over|choose)(?![a-zA-Z])|[=<>&,]", above + below):
                continue
            fraction = rf"\{'frac' if match.group(1) == 'over' else 'binom'}{{{above}}}{{{below}}}"
            if begins and not re.search(r"[\^_a-zA-Z\]}] ?$", text[: begin - 1]):
                begin, end = begin - 1, end + 1  # no argument of a command: the braces only hold it together
            return text[:begin] + fraction + text[end:]
    return text


def _font(match: re.Match[str]) -> str:
    name, content = match.groups()
    if name not in _FONTS:
        return match.group()
    word = re.search(r"[a-zA-Z]", content)
    if not word or re.search(r"\\[a-zA-Z]", content):
        return content
    if re.fullmatch(r"\s*\(?[A-Z]\)?[.:]?\s*", content):
        return content  # a choice
    if name in _TYPES and len(content.strip()) == 1:
        return content  # a variable in another type
    if content.strip() in ("lcm", "gcd", "max", "min"):
        return rf"\{content.strip()} "
    if name == r"\mathrm" and content.strip() in ("e", "i"):
        return content  # the constants
    return rf"\text{{{content}}}"


def _words_to_commands(text: str) -> str:
    r"""``sqrt(2)``, ``pi``, ``infinity`` and ``x^(2)`` as LaTeX has them; ``<=`` and ``*`` as signs."""
    text = re.sub(r"\s*<=\s*", r"\\leq ", text)
    text = re.sub(r"\s*>=\s*", r"\\geq ", text)
    text = re.sub(r"\s*!=\s*", r"\\neq ", text)
    if text.startswith("**") and text.endswith("**"):
        text = text.strip("*")
    text = text.replace("**", "^").replace("*", r"\cdot ")
    text = re.sub(r"(?<!\\)%", r"\\%", text)
    if not re.search(r"\\text|[a-zA-Z]{3,} [a-zA-Z]{2,}", text):
        text = _BARE_FUNCTION.sub(_bare_function, text)
    for marker in (r"\\sqrt ?(?=\()", r"\^ ?(?=\()"):
        match = re.search(marker, text)
        end = closing(text, match.end()) if match else None
        if match and end is not None:
            inner = text[match.end() + 1 : end]
            text = text[: match.end()].rstrip() + "{" + inner + "}" + text[end + 1 :]
    return text


def _bare_function(match: re.Match[str]) -> str:
    name = match.group()
    return r"\infty " if name in ("infinity", "inf", "oo") else rf"\{name} "


def _braces(text: str) -> str:
    r"""Arguments in braces: ``\frac12``, ``\sqrt2``, ``x^2``, ``a_1``; the degree sign without."""
    text = re.sub(r"\^ ?\{ ?\\circ ?\}|\^ ?\\circ(?![a-zA-Z])", r"^\\circ ", text)
    text = re.sub(rf"\\(frac|binom) ?({_ARGUMENT})", r"\\\1{\2}", text)
    text = re.sub(rf"\\(frac|binom) ?(\{{[^{{}}]*(?:\{{[^{{}}]*\}}[^{{}}]*)*\}}) ?({_ARGUMENT})", r"\\\1\2{\3}", text)
    text = re.sub(rf"\\sqrt ?(\[[^\[\]]*\])? ?({_ARGUMENT})", r"\\sqrt\1{\2}", text)
    text = re.sub(r"\\log ?_ ?(\d)", r"\\log_{\1}", text)
    text = re.sub(r"([\^_]) ?(-?\d+|[a-zA-Z]|\\(?!circ|text|frac|sqrt)[a-zA-Z]+)", r"\1{\2}", text)
    return re.sub(r"([\^_]) ?(?:\{ ?\\text\{([^{}]*)\} ?\}|\\text\{([^{}]*)\})", r"\1{\2\3}", text)


def _spaces(text: str) -> str:
    """Spaces only where they tell words, numbers or commands apart."""
    text = " ".join(text.split())
    parts = re.split(r"(\\text\{[^{}]*\})", text)
    for index, part in enumerate(parts):
        if index % 2:
            parts[index] = re.sub(r"\{ | \}", lambda match: match.group().strip(), part)
        else:
            part = _TIGHT.sub(r"\1", part)
            part = re.sub(r" ,", ",", part)
            part = re.sub(r"(?<!\d), |, (?!\d)", ",", part)
            parts[index] = re.sub(r"(\\[a-zA-Z]+) (?![a-zA-Z])", r"\1", part)
    return "".join(parts)


def _ends(text: str) -> str:
    """Only the answer: no "The answer is", no quotes, no full stop, no empty pairs at either end."""
    text = text.strip().removeprefix("{}").removesuffix("{}").strip()
    while prefix := _PREFIXES.match(text):
        text = text[prefix.end() :]
    quoted = _QUOTED.fullmatch(text)
    if quoted and (quoted.group(1) == quoted.group(3) or quoted.group(1, 3) == ("``", "''")):
        text = quoted.group(2).strip()
    text = re.sub(r"(^|=)<([^<>=,]*,[^<>=]*)>$", r"\1\\langle \2\\rangle", text)
    if re.search(r"(?<!\\)(?:\\\\)*\\$", text):
        text = text[:-1].rstrip()  # "\\ " that has lost its space
    while text.endswith(r"\\"):
        text = text[:-2].rstrip()
    while text.endswith((".", ",", ";", ":")) and not text.endswith("..") and not re.search(r"[ap]\.m\.$", text):
        text = text[:-1].rstrip()
    if text.startswith("{") and closing(text, 0) == len(text) - 1:
        text = text[1:-1]
    return text


def _all(step: Callable[[str], str]) -> Callable[[str], str]:
    """A step that takes one thing away at a time, until there is none."""

    def repeated(text: str) -> str:
        while (shorter := step(text)) != text:
            text = shorter
        return text

    return repeated


_STEPS: tuple[Callable[[str], str], ...] = (
    _unicode, _thousands, _all(_styles), _commands, _dollars, _fonts, _all(_infix), _words_to_commands,
    _braces, _spaces, _ends,
)  # fmt: skip
