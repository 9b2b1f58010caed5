r"""Tables for ``notation``: the many spellings of one thing in Unicode, LaTeX commands, fonts and wrappers."""

from __future__ import annotations

import unicodedata

_ONE_BY_ONE = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "‒": "-", "－": "-", "➖": "-", "×": r"\times ", "✕": r"\times ",
    "✖": r"\times ", "⨯": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "•": r"\cdot ", "∗": r"\cdot ",
    "÷": r"\div ", "°": r"^\circ ", "º": r"^\circ ", "˚": r"^\circ ", "℃": r"^\circ C", "℉": r"^\circ F",
    "≤": r"\leq ", "≥": r"\geq ", "⩽": r"\leq ", "⩾": r"\geq ", "≦": r"\leq ", "≧": r"\geq ", "≠": r"\neq ",
    "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∉": r"\notin ", "∌": r"\not\ni ", "±": r"\pm ",
    "∓": r"\mp ", "∅": r"\emptyset ", "⌀": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "≈": r"\approx ", "≃": r"\approx ", "≅": r"\cong ", "≡": r"\equiv ",
    "√": r"\sqrt ", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]", "⁄": "/", "∕": "/", "“": '"', "”": '"', "„": '"', "«": '"',
    "»": '"', "‘": "'", "’": "'", "′": "'", "″": "''", "…": r"\ldots ", "⋯": r"\ldots ", "⟨": r"\langle ",
    "⟩": r"\rangle ", "〈": r"\langle ", "〉": r"\rangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ",
    "⌉": r"\rceil ", "∖": r"\setminus ", "∣": "|", "∥": r"\| ", "‖": r"\| ", "△": r"\triangle ", "∆": r"\Delta ",
    "▲": r"\triangle ", "∠": r"\angle ", "∑": r"\sum ", "∏": r"\prod ", "∫": r"\int ", "∴": r"\therefore ",
    "⇒": r"\Rightarrow ", "⟹": r"\Rightarrow ", "→": r"\to ", "∀": r"\forall ", "∧": r"\text{ and }",
    "∨": r"\text{ or }", "、": ", ", "。": ". ", "或": r"\text{ or }", "和": r"\text{ and }", "∶": ":", "ℓ": "l",
    "€": r"\text{ euros}", "£": r"\text{ pounds sterling}", "¢": r"\text{ cents}", "₹": r"\text{ rupees}",
    "¥": r"\text{ yen}", "￥": r"\text{ yen}", "₩": r"\text{ won}", "₽": r"\text{ rubles}", "＄": r"\$",
    **dict.fromkeys("✅✓✔", r"\checkmark "),
    "ı": "i", "ϕ": r"\phi ", "ϵ": r"\epsilon ", "ϑ": r"\theta ", "ϱ": r"\rho ", "µ": r"\mu ", "Ω": r"\Omega ",
}  # fmt: skip
CURRENCIES = "€£¢₹¥￥₩₽"
_LATIN_CAPITALS = {"ALPHA": "A", "BETA": "B", "EPSILON": "E", "ZETA": "Z", "ETA": "H", "IOTA": "I", "KAPPA": "K"}
_LATIN_CAPITALS |= {"MU": "M", "NU": "N", "OMICRON": "O", "RHO": "P", "TAU": "T", "UPSILON": r"\Upsilon ", "CHI": "X"}


def _greek() -> dict[str, str]:
    commands = {}
    for code in [*range(0x391, 0x3AA), *range(0x3B1, 0x3CA)]:
        case, _, name = unicodedata.name(chr(code), "").removeprefix("GREEK ").partition(" LETTER ")
        name = name.replace("LAMDA", "LAMBDA").removeprefix("FINAL ")
        if name and case == "SMALL":
            commands[chr(code)] = rf"\{name.lower()} "
        elif name:
            commands[chr(code)] = _LATIN_CAPITALS.get(name, rf"\{name.capitalize()} ")
    return commands


SYMBOLS = _greek() | _ONE_BY_ONE
SCRIPTS = str.maketrans(
    "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺⁼⁽⁾ⁿⁱˣʸᵏᵐᵃᵇᵗʰ₀₁₂₃₄₅₆₇₈₉₋₊₍₎ₐₑᵢⱼₖₘₙₓ", "0123456789-+=()nixykmabth0123456789-+()aeijkmnx"
)
SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺⁼⁽⁾ⁿⁱˣʸᵏᵐᵃᵇᵗʰ"
SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉₋₊₍₎ₐₑᵢⱼₖₘₙₓ"
COMBINING = {"\u0307": r"\dot", "\u0305": r"\overline", "\u0304": r"\overline", "\u0302": r"\hat", "\u20d7": r"\vec"}

# command -> its plainer synonym
SYNONYMS = {
    **dict.fromkeys([r"\dfrac", r"\tfrac", r"\cfrac", r"\nicefrac", r"\sfrac", r"\flatfrac", r"\xfrac"], r"\frac"),
    r"\dbinom": r"\binom", r"\tbinom": r"\binom",
    r"\le": r"\leq", r"\leqslant": r"\leq", r"\ge": r"\geq", r"\geqslant": r"\geq", r"\leqq": r"\leq",
    r"\geqq": r"\geq", r"\ne": r"\neq", r"\lt": "<", r"\gt": ">",
    r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lvert": "|", r"\rvert": "|", r"\vert": "|", r"\mid": "|", r"\Vert": r"\|",
    r"\lVert": r"\|", r"\rVert": r"\|", r"\lbrack": "[", r"\rbrack": "]", r"\lparen": "(", r"\rparen": ")",
    r"\varnothing": r"\emptyset", r"\O": r"\emptyset", r"\degree": r"^\circ", r"\degrees": r"^\circ",
    r"\textdegree": r"^\circ", r"\celsius": r"^\circ C", r"\ast": r"\cdot", r"\bullet": r"\cdot", r"\dots": r"\ldots",
    r"\cdots": r"\ldots", r"\dotsc": r"\ldots", r"\dotsb": r"\ldots", r"\colon": ":", r"\ratio": ":",
    r"\lor": r"\text{ or }", r"\vee": r"\text{ or }", r"\land": r"\text{ and }", r"\wedge": r"\text{ and }",
    r"\infin": r"\infty", r"\varphi": r"\phi", r"\varepsilon": r"\epsilon", r"\vartheta": r"\theta",
    r"\varrho": r"\rho", r"\bigcup": r"\cup", r"\bigcap": r"\cap", r"\backslash": r"\setminus",
    r"\smallsetminus": r"\setminus", r"\R": r"\mathbb{R}", r"\Reals": r"\mathbb{R}", r"\reals": r"\mathbb{R}",
    r"\Z": r"\mathbb{Z}", r"\N": r"\mathbb{N}", r"\Q": r"\mathbb{Q}", r"\euro": r"\text{ euros}",
    r"\pounds": r"\text{ pounds sterling}", r"\yen": r"\text{ yen}", r"\lg": r"\log_{10}", r"\lb": r"\log_{2}",
    r"\percent": r"\%", r"\dollar": r"\$", r"\textdollar": r"\$",
    **dict.fromkeys([r"\implies", r"\Longrightarrow", r"\iff", r"\Leftrightarrow"], r"\Rightarrow"),
    r"\because": r"\therefore", r"\thickapprox": r"\approx", r"\simeq": r"\approx",
    r"\widehat": r"\hat", r"\conj": r"\overline", r"\imath": "i", r"\jmath": "j", r"\micro": r"\mu",
    r"\measuredangle": r"\angle",
    r"\tg": r"\tan", r"\ctg": r"\cot", r"\cotg": r"\cot", r"\ctan": r"\cot", r"\arctg": r"\arctan",
    r"\arcctg": r"\arccot", r"\cosec": r"\csc", r"\sh": r"\sinh", r"\ch": r"\cosh", r"\th": r"\tanh",
    r"\arsh": r"\arsinh", r"\asin": r"\arcsin", r"\acos": r"\arccos", r"\atan": r"\arctan", r"\acot": r"\arccot",
    r"\asec": r"\arcsec", r"\acsc": r"\arccsc", r"\arccosec": r"\arccsc", r"\asinh": r"\arsinh",
    r"\acosh": r"\arcosh", r"\atanh": r"\artanh", r"\ceiling": r"\ceil", r"\sign": r"\sgn", r"\real": r"\Re",
    r"\Infinity": r"\infty", r"\Bbb": r"\mathbb", r"\infinity": r"\infty", r"\inf": r"\infty", r"\oo": r"\infty",
}  # fmt: skip
_SILENT = r"""
    \left \right \middle \mleft \mright \big \Big \bigg \Bigg \bigl \bigr \Bigl \Bigr \biggl \biggr \Biggl \Biggr
    \displaystyle \textstyle \scriptstyle \limits \nolimits \! \( \) \[ \] \rm \bf \it \sf \tt \mathstrut \strut \/
    \protect \ensuremath \tiny \scriptsize \footnotesize \small \normalsize \large \Large \LARGE \huge \Huge \bfseries
    \itshape \rmfamily \sffamily \ttfamily \centering \noindent \par \hfill \hfil \nonumber \notag \relax \checkmark
    \qed \blacksquare \negthinspace \negmedspace \allowbreak \break
"""
NOTHING = frozenset(_SILENT.split())
_SPACING = r"\, \; \: \> \quad \qquad \thinspace \medspace \thickspace \enspace \enskip \space \nobreakspace \newline"
SPACES = frozenset([*_SPACING.split(), "\\ ", "\\\n", "\\\t"])
_FONT_COMMANDS = r"""
    \text \textbf \textit \textrm \textsf \texttt \textnormal \textsc \textup \textmd \emph \mbox \hbox \mathrm \mathbf
    \mathit \mathsf \mathtt \mathnormal \mathup \boldsymbol \bold \bm \pmb \symbf \symrm \operatorname \underline \boxed
    \fbox \framebox \mathcal \vec \overrightarrow \mathop \mathbin \mathrel \mathord \mathop \uline \textcolor \ce
    \operatorname*
"""
FONTS = frozenset(_FONT_COMMANDS.split())
TYPES = frozenset([
    r"\mathbf", r"\boldsymbol", r"\bold", r"\bm", r"\pmb", r"\mathcal", r"\mathit", r"\vec",
    r"\overrightarrow", r"\symbf",
])  # fmt: skip
ENVIRONMENTS = "equation|align|aligned|gather|gathered|displaymath|math|multline|split|center|flalign|eqnarray"
"""Environments that show their content as it is."""
ARRANGED = "cases|rcases|dcases|aligned|align|array|gathered|gather|split|eqnarray"
"""Environments that may hold a system of one equation a line."""
FUNCTIONS = [
    "sqrt", "cbrt", "sin", "cos", "tan", "cot", "sec", "csc", "cosec", "arcsin", "arccos", "arctan", "arccot",
    "arcsec", "arccsc", "asin", "acos", "atan", "acot", "sinh", "cosh", "tanh", "coth", "sech", "csch",
    "asinh", "acosh", "atanh", "arcsinh", "arccosh", "arctanh", "arsinh", "arcosh", "artanh", "tg", "ctg",
    "cotg", "arctg", "arcctg", "log", "ln", "lg", "exp", "cis", "sgn", "pi", "infty", "infinity", "Infinity",
    "inf", "oo", "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "theta", "kappa", "lambda", "rho", "sigma",
    "tau", "phi", "chi", "psi", "omega",
]  # fmt: skip
"""Names that are functions, constants or letters even without a backslash."""
CALLED = ["abs", "factorial", "floor", "ceil", "ceiling", "gcd", "lcm", "max", "min", "sign", "norm"]
"""Names that are functions where a bracket follows."""
