r"""Random answers as trees, printed in several notations, changed in one place, and worked out without the reader.

A tree is nested tuples: ``("int", 3)``, ``("var", "x")``, ``("pi",)``, ``("+", a, b)``, ``("-", a, b)``,
``("*", a, b)``, ``("/", a, b)``, ``("^", a, n)``, ``("sqrt", a)``, ``("neg", a)``, ``("sin", a)``, ``("ln", a)``.
An answer is a tree, or one of ``KINDS`` with trees: a tuple, an amount with its unit, a family of solutions...
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import mpmath

Tree = tuple[Any, ...]
VARIABLES = "xyabn"
UNITS = {
    "cm": ("cm", r"\text{ cm}", r"\,\mathrm{cm}", " centimeters"),
    "m": (" m", r"\text{ m}", " meters", r"\text{ metres}"),
    "m^2": (" m^2", r"\text{ m}^2", " square meters", r" \mathrm{m^{2}}"),
    "km/h": (" km/h", r"\text{ km/h}", " kilometers per hour", r"\ \frac{\text{km}}{\text{h}}"),
    "m/s^2": (" m/s^2", r"\text{ m/s}^2", " meters per second squared", r"\ \mathrm{m\,s^{-2}}"),
    "s": (" s", r"\text{ s}", " seconds", r"\text{ sec}"),
    "h": (" h", r"\text{ hours}", " hours", " hr"),
    "kg": (" kg", r"\text{ kg}", " kilograms", r"\,\mathrm{kg}"),
    "J": (" J", r"\text{ J}", " joules", r"\,\mathrm{J}"),
    "apples": (" apples", r"\text{ apples}", r"\ \text{apples}", " apples"),
    "$": ("$", r"\$", "USD ", "dollars"),
    "°C": ("°C", r"^\circ C", r"^{\circ}\text{C}", " degrees Celsius"),
}
BRACKETS = ("()", "[]", "(]", "[)")
NAMES = {
    "x": ("x", "x"), "f": ("f(x)", r"f\left(x\right)"), "P": ("P(X=2)", r"\Pr(X=2)"), "area": (r"\text{Area}", "Area"),
    "angle": (r"\angle ABC", r"m\angle ABC"), "card": (r"|A\cup B|", r"\left|A \cup B\right|"),
    "det": (r"\det A", r"\det(A)"),
}  # fmt: skip
COLLECTIONS = ("tuple", "set", "matrix", "vector", "list", "ratio")
KINDS = (*COLLECTIONS, "interval", "union", "equation", "amount", "words", "named", "family")


def scalar(rng: random.Random, depth: int, variables: str) -> Tree:
    """A tree of at most ``depth`` operations one in another."""
    if depth == 0 or rng.random() < 0.15:
        kind = rng.random()
        if kind < 0.55 or not variables:
            return ("pi",) if kind < 0.06 else ("int", rng.randint(1, 12))
        return ("var", rng.choice(variables))
    operation = rng.choices("+-*/^snfl", (5, 5, 5, 5, 3, 3, 2, 1, 1))[0]
    inner = scalar(rng, depth - 1, variables)
    if operation == "^":
        return ("^", inner, rng.choice((2, 2, 3)))
    if operation in "snfl":
        return ({"s": "sqrt", "n": "neg", "f": "sin", "l": "ln"}[operation], inner)
    return (operation, inner, scalar(rng, depth - 1, variables))


def answer(rng: random.Random) -> Tree:
    """An answer of one kind or another."""
    kind = rng.choices(("number", "expression", *KINDS), (5, 6, 2, 2, 1, 1, 1, 1, 2, 1, 2, 3, 2, 2, 1))[0]
    if kind == "words":
        return (
            "words",
            (
                "int",
                rng.choice((rng.randint(2, 99), rng.randint(100, 9999), 10 ** rng.randint(2, 6) * rng.randint(1, 40))),
            ),
        )
    if kind == "named":
        return ("named", rng.choice(list(NAMES)), scalar(rng, 1, ""))
    if kind == "family":
        step = rng.choice((("pi",), ("*", ("int", 2), ("pi",))))
        return ("family", ("/", ("pi",), ("int", rng.randint(2, 12))), step)
    if kind == "union":
        low = rng.randint(-9, 5)
        return ("union", rng.choice(BRACKETS) + rng.choice(BRACKETS), *(integer(low + i) for i in (0, 1, 3, 7)))
    if kind == "ratio":
        return ("ratio", *(("int", rng.randint(25, 80)) for _ in range(rng.randint(2, 3))))  # no time of day
    if kind == "number":
        return scalar(rng, rng.randint(1, 3), "")
    if kind == "expression":
        return scalar(rng, rng.randint(1, 3), rng.choice(("x", "xy", "abn", "n")))
    if kind == "equation":
        return ("equation", "y", scalar(rng, 2, "x"))
    if kind == "amount":
        return ("amount", rng.choice(list(UNITS)), ("int", rng.randint(2, 99)))
    if kind == "interval":
        low = rng.randint(-9, 9)
        return ("interval", rng.choice(BRACKETS), integer(low), ("/", integer(low * 2 + rng.randint(1, 9)), ("int", 2)))
    count = 4 if kind == "matrix" else rng.randint(2, 3)
    return (kind, *(scalar(rng, 1, "") for _ in range(count)))


def integer(number: int) -> Tree:
    return ("int", number) if number >= 0 else ("neg", ("int", -number))


# -- printing


class Notation:
    """How one writer writes; ``latex`` or plain text."""

    def __init__(self, latex: bool, rng: random.Random) -> None:
        self.latex, self.rng = latex, rng
        self.unicode = not latex and rng.random() < 0.5
        self.fraction = rng.choice((r"\frac", r"\dfrac", r"\tfrac", "/")) if latex else "/"
        self.times = rng.choice((r" \cdot ", r"\times ", "", "")) if latex else rng.choice(("*", " * "))
        self.brackets = (
            rng.choice((("(", ")"), (r"\left(", r"\right)"), (r"\bigl(", r"\bigr)"))) if latex else ("(", ")")
        )
        self.decimals = rng.random() < 0.3
        self.swap = rng.random() < 0.5
        self.power = rng.choice(("^", "**")) if not latex and not self.unicode else "^"

    def bracketed(self, text: str) -> str:
        return self.brackets[0] + text + self.brackets[1]

    def show(self, tree: Tree, within: int = 0) -> str:
        """``within``: how tightly what stands around binds: 2 in a product, 4 below a line, 5 under a power."""
        kind = tree[0]
        if kind == "int":
            return str(tree[1])
        if kind == "var":
            return tree[1]
        if kind == "pi":
            return r"\pi " if self.latex else "π" if self.unicode else "pi"
        text, binds = getattr(
            self, "_" + {"+": "sum", "-": "sum", "*": "product", "/": "quotient", "^": "raised"}.get(kind, kind)
        )(tree)
        return self.bracketed(text) if binds < within else text

    def _sum(self, tree: Tree) -> tuple[str, int]:
        sign, left, right = tree
        if sign == "+" and self.swap:
            left, right = right, left
        space = " " if self.rng.random() < 0.5 else ""
        return self.show(left, 0) + space + (sign if not self.unicode or sign == "+" else "−") + space + self.show(
            right, 2
        ), 0

    def _neg(self, tree: Tree) -> tuple[str, int]:
        return "-" + self.show(tree[1], 2), 0

    def _product(self, tree: Tree) -> tuple[str, int]:
        left, right = (tree[2], tree[1]) if self.swap else (tree[1], tree[2])
        before, after = self.show(left, 2), self.show(right, 3)
        times = self.times
        if not times and (
            after[0].isdigit()
            or (before[-1].isdigit() and after.startswith("\\") and "frac" in after[:6])
            or after[0] == "."
            or (before[-1].isalpha() and after[0].isalpha())
        ):
            times = r"\cdot "
        return before + times + after, 2

    def _quotient(self, tree: Tree) -> tuple[str, int]:
        above, below = tree[1], tree[2]
        if above[0] == "int" and below == ("int", 2) and self.decimals:
            return f"{above[1] / 2}", 3
        if self.fraction != "/":
            return f"{self.fraction}{{{self.show(above)}}}{{{self.show(below)}}}", 3
        return self.show(above, 2) + "/" + self.show(below, 4), 2

    def _raised(self, tree: Tree) -> tuple[str, int]:
        base = self.show(tree[1], 5)
        if self.unicode:
            return base + "²³"[tree[2] - 2], 4
        power = f"{{{tree[2]}}}" if self.latex and self.rng.random() < 0.5 else str(tree[2])
        return base + self.power + power, 4

    def _sqrt(self, tree: Tree) -> tuple[str, int]:
        inner = self.show(tree[1])
        if self.latex:
            return rf"\sqrt{{{inner}}}", 4
        return ("√" if self.unicode else "sqrt") + f"({inner})", 4

    def _sin(self, tree: Tree) -> tuple[str, int]:
        return (r"\sin" if self.latex else "sin") + self.bracketed(self.show(tree[1])), 2

    def _ln(self, tree: Tree) -> tuple[str, int]:
        return (r"\ln" if self.latex else "ln") + self.bracketed(self.show(tree[1])), 2


def show(tree: Tree, rng: random.Random) -> str:
    """The answer as somebody writes it."""
    writer = Notation(rng.random() < 0.6, rng)
    kind = tree[0]
    if kind == "equation":
        sides = [tree[1], writer.show(tree[2])]
        return " = ".join(reversed(sides) if rng.random() < 0.2 else sides)
    if kind == "amount":
        spelt = rng.choice(UNITS[tree[1]])
        number = writer.show(tree[2])
        if tree[1] == "$":
            return f"{number} dollars" if spelt == "dollars" else spelt + number
        return number + spelt
    if kind == "interval":
        left, right = tree[1]
        inner = f"{writer.show(tree[2])}, {writer.show(tree[3])}"
        return rf"\left{left}{inner}\right{right}" if writer.latex else f"{left}{inner}{right}"
    if kind == "union":
        one, two = tree[1][:2], tree[1][2:]
        a, b, c, d = (writer.show(end) for end in tree[2:])
        both = [f"{one[0]}{a},{b}{one[1]}", f"{two[0]}{c}, {d}{two[1]}"]
        rng.shuffle(both)
        return rng.choice((r" \cup ", "∪", " U ")).join(both)
    if kind == "words":
        return rng.choice((words, words, with_commas, str))(tree[1][1])
    if kind == "named":
        return f"{rng.choice(NAMES[tree[1]])} = {writer.show(tree[2])}"
    if kind == "family":
        letter = rng.choice("kn")
        where = rng.choice(
            (
                r", {}\in\mathbb{{Z}}",
                r" \text{{ for }} {} \in \mathbb{{Z}}",
                r" \text{{ where }} {} \text{{ is an integer}}",
            )
        )
        start, step = writer.show(tree[1]), writer.show(tree[2], 3)
        times = " " if writer.latex else "*"
        product = rng.choice((f"{letter}{times}{step}", f"{step}{times}{letter}"))
        return f"{start} + {product}" + where.format(letter)
    if kind == "ratio":
        factor = rng.choice((1, 1, 2, 5))
        return rng.choice((":", " : ")).join(str(factor * term[1]) for term in tree[1:])
    if kind == "vector":
        cells = [writer.show(cell) for cell in tree[1:]]
        column = r"\begin{pmatrix} " + r" \\ ".join(cells) + r" \end{pmatrix}"
        row = r"\left\langle " + ", ".join(cells) + r" \right\rangle"
        sum_of = " + ".join(rf"({cell})\mathbf{{{unit}}}" for cell, unit in zip(cells, "ijk", strict=False))
        return rng.choice((column, row, sum_of))
    if kind == "matrix":
        a, b, c, d = (writer.show(cell) for cell in tree[1:])
        name = rng.choice(("pmatrix", "bmatrix"))
        return rf"\begin{{{name}}} {a} & {b} \\ {c} & {d} \end{{{name}}}"
    if kind in ("tuple", "set", "list"):
        items = [writer.show(item) for item in tree[1:]]
        if kind == "set":
            rng.shuffle(items)
        left, right = {"tuple": ("(", ")"), "set": (r"\{", r"\}"), "list": ("", "")}[kind]
        return left + ", ".join(items) + right
    text = writer.show(tree)
    wrappers: list[Callable[[str], str]] = [str, str, "${}$".format, r"\boxed{{{}}}".format, r"\displaystyle {}".format]
    return rng.choice(wrappers)(text)


# Not the reader's own table: what it reads is compared with what was written from here.
SMALL = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
]
SMALL += ["seventeen", "eighteen", "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def words(number: int) -> str:
    """In English, below a thousand million."""
    for size, name in ((10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if number >= size:
            rest = number % size
            joint = " and " if size == 100 and rest and number % 2 else " "
            return f"{words(number // size)} {name}" + (joint + words(rest) if rest else "")
    if number < 20:
        return SMALL[number]
    return TENS[number // 10 - 2] + (f"-{SMALL[number % 10]}" if number % 10 else "")


def with_commas(number: int) -> str:
    return f"{number:,}"


def simplified(tree: Tree, rng: random.Random) -> str | None:
    """A scalar as sympy writes it, expanded, factored or put together; None where sympy changes what it is."""
    import sympy

    expression = to_sympy(tree)
    if not expression.is_finite and not expression.free_symbols:
        return None
    way = rng.choice((sympy.expand, sympy.factor, sympy.together, sympy.cancel, sympy.radsimp))
    found = way(expression)
    if found.has(sympy.nan, sympy.zoo, sympy.I, sympy.Float):
        return None
    return sympy.latex(found, ln_notation=True) if rng.random() < 0.6 else str(found).replace("log", "ln")


def to_sympy(tree: Tree) -> Any:
    import sympy

    kind, *rest = tree
    if kind == "int":
        return sympy.Integer(rest[0])
    if kind == "var":
        return sympy.Symbol(rest[0])
    if kind == "pi":
        return sympy.pi
    if kind == "^":
        return to_sympy(rest[0]) ** rest[1]
    values = [to_sympy(child) for child in rest]
    one = {"sqrt": sympy.sqrt, "sin": sympy.sin, "ln": sympy.log, "neg": lambda x: -x}
    if kind in one:
        return one[kind](values[0])
    left, right = values
    return {"+": left + right, "-": left - right, "*": left * right}[kind] if kind != "/" else left / right


# -- changing and working out


def changed(tree: Tree, rng: random.Random) -> tuple[str, Tree] | None:
    """The name of a change and the tree with it made in one place; None where the change drawn finds no place."""
    if tree[0] == "interval" and rng.random() < 0.5:
        return "bracket", ("interval", rng.choice([b for b in BRACKETS if b != tree[1]]), *tree[2:])
    if tree[0] == "union" and rng.random() < 0.5:
        other = rng.choice([b for b in BRACKETS if b != tree[1][:2]])
        return "bracket", ("union", other + tree[1][2:], *tree[2:])
    if tree[0] == "amount" and rng.random() < 0.5:
        return "unit", ("amount", rng.choice([unit for unit in UNITS if unit != tree[1]]), tree[2])
    if tree[0] in ("tuple", "list", "ratio", "vector", "matrix") and rng.random() < 0.3:
        return "order", (tree[0], *tree[:0:-1])
    if tree[0] in ("tuple", "set", "list") and len(tree) > 3 and rng.random() < 0.3:
        return "one left out", tree[:-1]
    places = list(_places(tree))
    path = rng.choice(places)
    node = _at(tree, path)
    found = _changed_node(node, rng)
    return None if found is None else (found[0], _with(tree, path, found[1]))


def _changed_node(node: Tree, rng: random.Random) -> tuple[str, Tree] | None:
    kind = node[0]
    if kind == "int":
        return "leaf", ("int", node[1] + rng.choice((1, 2, 10)))
    if kind == "var":
        return "letter", ("var", rng.choice([name for name in VARIABLES if name != node[1]]))
    if kind in "+-":
        return "sign", ("-" if kind == "+" else "+", *node[1:])
    if kind == "neg":
        return "sign", node[1]
    if kind in "*/":
        return "operation", ("/" if kind == "*" else "*", *node[1:])
    if kind == "^":
        return "power", ("^", node[1], 5 - node[2])
    if kind in ("sqrt", "sin", "ln"):
        return "function left out", node[1]
    return None


def _places(tree: Tree, path: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    found = [path] if tree[0] not in KINDS else []
    for index, child in enumerate(tree):
        if isinstance(child, tuple):
            found += _places(child, (*path, index))
    return found


def _at(tree: Tree, path: tuple[int, ...]) -> Tree:
    for index in path:
        tree = tree[index]
    return tree


def _with(tree: Tree, path: tuple[int, ...], new: Tree) -> Tree:
    if not path:
        return new
    head, *rest = path
    return (*tree[:head], _with(tree[head], tuple(rest), new), *tree[head + 1 :])


_VALUES = (
    (0.31, 1.7, 2.3, 0.9, 3.0),
    (2.9, 0.4, 1.1, 3.3, 5.0),
    (1.9, 5.3, 0.7, 0.2, 2.0),
    (7.1, 3.1, 4.3, 6.1, 8.0),
)
mpmath.mp.dps = 40
POINTS = [dict(zip(VARIABLES, values, strict=True)) for values in _VALUES]


def value(tree: Tree, where: dict[str, float]) -> Any:
    """By mpmath, to 30 digits; raises where there is none."""
    kind, *rest = tree
    if kind == "int":
        return mpmath.mpf(rest[0])
    if kind == "var":
        return mpmath.mpf(where[rest[0]])
    if kind == "pi":
        return +mpmath.pi
    if kind == "^":
        return value(rest[0], where) ** rest[1]
    values = [value(child, where) for child in rest]
    if kind in ("sqrt", "sin", "ln", "neg"):
        if kind == "ln" and abs(values[0]) < 1e-9:
            raise ZeroDivisionError
        return {"sqrt": mpmath.sqrt, "sin": mpmath.sin, "ln": mpmath.log, "neg": lambda x: -x}[kind](values[0])
    left, right = values
    if kind == "/" and abs(right) < 1e-9:
        raise ZeroDivisionError
    return {"+": left + right, "-": left - right, "*": left * right}[kind] if kind != "/" else left / right


def is_defined(tree: Tree) -> bool:
    """Whether all scalars of an answer are real numbers at the first points."""
    try:
        for part in parts(tree):
            for where in POINTS:
                number = value(part, where)
                if not mpmath.isfinite(number) or abs(mpmath.im(number)) > 0 or abs(number) > 1e12:
                    return False
    except (ZeroDivisionError, OverflowError):
        return False
    return True


def parts(tree: Tree) -> list[Tree]:
    """The scalars of an answer."""
    if tree[0] in KINDS:
        return [child for child in tree[1:] if isinstance(child, tuple)]
    return [tree]


def same(one: Tree, other: Tree) -> bool:
    """Whether two answers of one kind are the same, by their values at points."""
    if one[0] in KINDS and [p for p in one if isinstance(p, str)] != [p for p in other if isinstance(p, str)]:
        return False
    these, those = ([[value(part, where) for where in POINTS] for part in parts(tree)] for tree in (one, other))

    def near(a: list[Any], b: list[Any]) -> bool:
        return all(abs(x - y) <= 1e-12 * (1 + abs(x) + abs(y)) for x, y in zip(a, b, strict=True))

    if one[0] == "ratio":
        these, those = ([[a / b for a, b in zip(row, rows[0], strict=True)] for row in rows] for rows in (these, those))
    if one[0] == "family":  # the same step, and starts that many steps apart
        return near(these[1], those[1]) and abs((these[0][0] - those[0][0]) / these[1][0] % 1) < 1e-9
    if one[0] == "set":
        return all(any(near(a, b) for b in those) for a in these) and all(any(near(a, b) for b in these) for a in those)
    return len(these) == len(those) and all(near(a, b) for a, b in zip(these, those, strict=True))
